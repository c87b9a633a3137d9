"""Photos on a pretrained network, by the command line's function and by the estimator."""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from ccrepro import ContrastiveClustering
from ccrepro.errors import CheckpointError, ConfigError, Stopped
from ccrepro.metrics import scores
from ccrepro.own_images import cluster, photos, predict
from ccrepro.runs import streaming
from ccrepro.runs.checkpoints import Checkpoints
from ccrepro.runs.weights import load_model

BACKBONE = "test_efficientnet"
QUICK = {"epochs": 40, "image_size": 64, "flip": 0.0}
GENTLE = {"crop_scale": (0.5, 1.0), "jitter": 0.0, "grayscale": 0.0}  # for a network that has seen nothing


def run(folder, out, weights, n_clusters=3, n_init=3, **more):
    settings = {**QUICK, **GENTLE, **more.pop("settings", {})}
    network = {"backbone": BACKBONE, "weights": str(weights), "n_init": n_init}
    cluster.run(folder, n_clusters, out, **network, **more, settings=settings)


@pytest.fixture(scope="module")
def out(folder, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("photos")
    run(folder, out, weights)
    return out


def test_the_start_of_the_lowest_loss_is_what_is_saved(folder, out, capsys):
    """And the kinds, which differ in colour and form, are found even by a network of random weights."""
    facts, found = json.loads((out / "summary.json").read_text()), pd.read_csv(out / "clusters.csv")
    assert facts["scores"]["acc"] > 0.9
    losses = facts["starts"]["losses"]
    assert len(losses) == 3
    assert losses == sorted(losses)
    assert 0 < facts["starts"]["agreement"] <= 1
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [(line["start"], line["epoch"]) for line in log] == [(s, e) for s in range(3) for e in range(1, 41)]
    predict.predict(out, str(folder))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["cluster"] for line in lines] == found.cluster.tolist()
    assert [line["confidence"] for line in lines] == pytest.approx(found.confidence.tolist(), abs=2e-3)


def test_a_second_call_makes_nothing_again_and_another_k_finds_the_features_made(folder, out, weights, monkeypatch):
    before, model = (out / "clusters.csv").read_text(), (out / "model.safetensors").read_bytes()

    def refuse(*arguments, **more):
        raise AssertionError("made again")

    with monkeypatch.context() as made:
        made.setattr("ccrepro.own_images.starts.learn", refuse)
        made.setattr("ccrepro.augmentations.apply", refuse)
        run(folder, out, weights)
    assert (out / "clusters.csv").read_text() == before
    assert (out / "model.safetensors").read_bytes() == model
    other = out.with_name("other")
    shutil.copytree(out, other)
    monkeypatch.setattr("ccrepro.augmentations.apply", refuse)
    run(folder, other, weights, n_clusters=2)
    assert len(json.loads((other / "summary.json").read_text())["sizes"]) == 2


def test_auto_takes_the_number_of_the_largest_silhouette(folder, out, weights, tmp_path, capsys):
    run(folder, tmp_path, weights, n_clusters="auto", n_init=1)
    facts = json.loads((tmp_path / "summary.json").read_text())
    curve = {int(k): value for k, value in facts["silhouettes"].items()}
    assert [*curve] == [*range(2, 10)]
    assert len(facts["sizes"]) == max(curve, key=curve.get) == 3
    assert f"with 2 to 9 clusters: the largest are {curve[3]:.3f} with 3, " in capsys.readouterr().out
    assert Image.open(tmp_path / "silhouettes.png").size == (960, 512)
    assert load_model(tmp_path)[1].n_clusters == 3


def test_fine_tuning_changes_the_last_stage_alone_and_goes_on_where_it_was(folder, out, tmp_path, monkeypatch):
    data = cluster.read(folder, out / "packed").data

    def tuned(kept):
        model, config, _ = load_model(out)
        return photos.fine_tune(model, config, data, 3, kept), model.state_dict()

    before, (found, after) = load_model(out)[0].state_dict(), tuned(tmp_path / "whole")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    own = {name.removeprefix("backbone.encoder.") for name in changed if "encoder" in name}
    assert {name for name in own if not name.startswith(("blocks.4.", "conv_head.", "bn2."))} == set()  # timm's names
    assert "blocks.4.0.conv_pw.weight" in own
    assert not any("running" in name for name in changed)
    assert {name for name in before if "encoder" not in name} - changed == {
        *("backbone.length", "standardize.mean", "standardize.deviation")
    }
    assert scores(data.labels, found.p.argmax(1))["acc"] > 0.9
    signals = iter([signal.SIGTERM])

    def due(self):
        for number in signals:  # after the first step, once
            os.kill(os.getpid(), number)
        return False

    with monkeypatch.context() as stopping:
        stopping.setattr(Checkpoints, "due", due)
        with pytest.raises(Stopped):
            tuned(tmp_path / "stopped")
    again, same = tuned(tmp_path / "stopped")
    assert np.array_equal(again.p, found.p)
    assert all(torch.equal(after[name], same[name]) for name in after)


def test_a_fine_tuned_network_is_what_is_saved(folder, out, weights, tmp_path):
    run(folder, shutil.copytree(out, tmp_path / "out"), weights, fine_tune=1)
    model, config, _ = load_model(tmp_path / "out")
    data, found = cluster.read(folder, out / "packed").data, pd.read_csv(tmp_path / "out/clusters.csv")
    p = streaming.outputs(model, data.images, config).p
    assert p.max(1) == pytest.approx(found.confidence, abs=1e-4)
    assert p.max(1) != pytest.approx(pd.read_csv(out / "clusters.csv").confidence, abs=1e-4)
    facts = json.loads((tmp_path / "out/summary.json").read_text())
    assert facts["fine_tuned"]["epochs"] == 1
    assert facts["fine_tuned"]["agreement"] > 0.9


def test_images_are_sorted_into_folders(folder, out, weights, tmp_path, capsys):
    target = tmp_path / "sorted"
    run(folder, out, weights, move_into=str(target))
    found = pd.read_csv(out / "clusters.csv")
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*.png")) == sorted(
        f"{row.cluster}/{row.path}" for row in found.itertuples()
    )
    with pytest.raises(ConfigError, match="sorted is not empty"):
        run(folder, out, weights, move_into=str(target))
    for place in (folder / "sorted", folder):
        with pytest.raises(ConfigError, match="one lies in the other"):
            run(folder, out, weights, move_into=str(place))
    # New images, later, with no new training.
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(folder / "a/00.png", new / "late.png")
    shutil.copy(folder / "a/03.png", new / "03.png")
    capsys.readouterr()
    predict.predict(out, str(new), csv=True, move_into=str(target))
    (tmp_path / "p.csv").write_text(capsys.readouterr().out)
    table = pd.read_csv(tmp_path / "p.csv")
    assert [Path(path).name for path in table.path] == ["03.png", "late.png"]
    kind = found.set_index("path").cluster["a/00.png"]
    assert table.cluster[1] == kind
    assert (target / f"{kind}/late.png").exists()
    shutil.copy(folder / "b/01.png", new / "late.png")
    predict.predict(out, str(new / "late.png"), move_into=str(target))
    shutil.copy(folder / "b/04.png" if (folder / "b/04.png").exists() else folder / "b/07.png", tmp_path / "late.png")
    predict.predict(out, str(tmp_path / "late.png"), move_into=str(target))
    assert "not sorted, since another file of the same name is there: 1" in capsys.readouterr().err


def test_csv_holds_any_name_and_what_is_wrong(folder, out, tmp_path, capsys):
    odd = tmp_path / 'a,"b\n.png'
    shutil.copy(folder / "a/00.png", odd)
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(Exception, match="1 of 2 images are bad"):
        predict.predict(out, str(tmp_path), csv=True)
    (tmp_path / "p.csv").write_text(capsys.readouterr().out)
    table = pd.read_csv(tmp_path / "p.csv")
    assert table.path.tolist() == [str(odd), str(tmp_path / "bad.png")]
    assert table.error.tolist()[1] == "empty file"
    assert table.cluster.isna().tolist() == [False, True]


def test_what_is_taken_where_nothing_is_said():
    small, large = (np.zeros((4, 3, side, side + 9), np.uint8) for side in (63, 64))
    assert cluster.choose(small) == ""
    assert cluster.choose(large) == "efficientnet-lite0"
    assert cluster.choose(large, from_scratch=True) == ""
    assert cluster.choose(small, backbone="resnet18") == "resnet18"


def test_what_cannot_be_is_told(folder, weights, tmp_path):
    for says, more in (
        ("Unknown pretrained network 'resnet19'", {"backbone": "resnet19"}),
        ("--n-clusters auto is for a pretrained network", {"n_clusters": "auto", "backbone": "", "weights": ""}),
        ("--weights is for a pretrained network", {"backbone": ""}),
        ("--fine-tune is for a pretrained network", {"backbone": "", "weights": "", "fine_tune": 1}),
        ("views cannot be set on a pretrained network", {"backbone": BACKBONE, "settings": {"views": "one"}}),
        ("n_init is 0", {"backbone": BACKBONE, "n_init": 0}),
    ):
        arguments = {"n_clusters": 3, "settings": {}, "weights": str(weights), **more}
        with pytest.raises(ConfigError, match=says):
            cluster.run(folder, arguments.pop("n_clusters"), tmp_path / "out", **arguments)
    shutil.copytree(folder / "a", tmp_path / "few")
    for path in sorted((tmp_path / "few").iterdir())[9:]:
        path.unlink()
    with pytest.raises(ConfigError, match="auto needs 10 images or more, but there are 9"):
        run(tmp_path / "few", tmp_path / "out", weights, n_clusters="auto")
    with pytest.raises(CheckpointError, match="Cannot get the weights"):
        cluster.run(folder, 3, tmp_path / "out", backbone=BACKBONE, weights="none.pth", settings={})
    assert not (tmp_path / "out/features").exists()


@pytest.fixture(scope="module")
def kinds(folder):
    """The paths of the folder's images, and their kinds."""
    paths = sorted(folder.rglob("*.png"))
    return paths, [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def fitted(kinds, weights):
    one = ContrastiveClustering(
        3, backbone=BACKBONE, weights=weights, n_init=2, random_state=0, settings=GENTLE, **QUICK
    )
    return one.fit(kinds[0])


def test_an_estimator_fits_predicts_and_is_saved(fitted, kinds, tmp_path):
    paths, labels = kinds
    assert adjusted_rand_score(labels, fitted.labels_) > 0.8
    assert (fitted.predict(paths) == fitted.labels_).all()
    assert fitted.losses_ == sorted(fitted.losses_)
    assert len(fitted.losses_) == 2
    assert fitted.n_iter_ == 40
    again = ContrastiveClustering.load(fitted.save(tmp_path / "m.safetensors"))
    np.testing.assert_allclose(again.predict_proba(paths), fitted.predict_proba(paths), atol=1e-5)
    assert again.get_params()["backbone"] == BACKBONE
    assert not again.config_.differences(fitted.config_)
    assert 0 <= again.score(paths) <= 1
    assert clone(again).set_params(weights=fitted.weights, epochs=1, n_init=1).fit(paths).n_iter_ == 1
    assert (ContrastiveClustering.load(again.save(tmp_path / "n.safetensors")).predict(paths) == fitted.labels_).all()
    auto = clone(fitted).set_params(n_clusters="auto", n_init=1).fit(paths)
    assert auto.predict_proba(paths).shape == (48, 3)


def test_partial_fit_trains_trunk_and_heads_on_new_images(fitted, kinds, weights):
    paths, labels = kinds
    one = ContrastiveClustering(
        3, backbone=BACKBONE, weights=weights, batch_size=24, random_state=0, settings=GENTLE, **QUICK
    )
    for epoch in range(20):
        one.partial_fit(paths[epoch % 2 :: 2])
    assert one.n_iter_ == 20
    assert one.history_[-1]["loss"] < one.history_[0]["loss"]
    assert adjusted_rand_score(labels[1::2], one.labels_) > 0.4
    frozen = {name: v.clone() for name, v in fitted.model_.backbone.encoder.state_dict().items()}
    more = pickle.loads(pickle.dumps(fitted)).partial_fit(paths)
    assert more.n_iter_ == 41
    assert all((v == frozen[name]).all() for name, v in more.model_.backbone.encoder.state_dict().items())
    assert adjusted_rand_score(labels, more.labels_) > 0.8


def test_few_photos_from_scratch_get_a_warning():
    photos = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64)).astype(np.uint8)
    with pytest.warns(UserWarning, match="fewer than 5,000 photos are few"):
        ContrastiveClustering(2, epochs=1, image_size=16, settings={"backbone": "small"}).fit(photos)


@pytest.mark.slow
@pytest.mark.skipif("CCREPRO_DATA" not in os.environ, reason="needs photos in $CCREPRO_DATA")
def test_photos_are_clustered_as_the_documentation_says(tmp_path):
    """150 of Imagenette's photos, with all defaults."""
    for synset in Path(os.environ["CCREPRO_DATA"], "samples/standin_imagenette2-160/train").iterdir():
        (tmp_path / "photos" / synset.name).mkdir(parents=True)
        for path in sorted(synset.iterdir())[:15]:
            (tmp_path / "photos" / synset.name / path.name).symlink_to(path)
    cluster.run(tmp_path / "photos", 10, tmp_path / "out", settings={})
    facts = json.loads((tmp_path / "out/summary.json").read_text())
    assert facts["scores"]["acc"] > 0.85
