"""A folder of pictures from the command line: what is written, what is printed, and what is refused."""

import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from html.parser import HTMLParser
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw
from test_foreign import authors_file

from ccrepro import collection, config, files, gallery, stream, watch
from ccrepro.cli import main
from ccrepro.errors import ConfigError


def picture(kind, rng, size=(16, 12)):
    """Red stripes, green stripes the other way, or a blue disc, with noise: width, height."""
    column, row = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    shape = [row // 2 % 2, column // 2 % 2, (row - size[1] / 2) ** 2 + (column - size[0] / 2) ** 2 < 20][kind]
    pixels = rng.normal(60, 10, (size[1], size[0], 3))
    pixels[..., kind] += 130 * shape
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """48 pictures in three sub-folders, one file with a name that needs quoting."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(48):
        place = folder / "abc"[i % 3]
        place.mkdir(exist_ok=True)
        picture(i % 3, rng).save(place / (f"<{i}> & #é?.png" if i == 4 else f"{i:02d}.png"))
    return folder


@pytest.fixture(scope="module")
def clustered(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(["cluster", str(photos), "--n-clusters", "3", "--out", str(out), "--epochs", "25"]) == 0
    return out


def test_csv_has_every_picture_and_the_kinds_are_found(photos, clustered):
    found = pd.read_csv(clustered / "clusters.csv")
    assert list(found.columns) == ["path", "cluster", "confidence"]
    assert sorted(found.path) == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png"))
    assert found.confidence.between(1 / 3, 1).all()
    facts = json.loads((clustered / "summary.json").read_text())
    assert facts["sizes"] == np.bincount(found.cluster, minlength=3).tolist()
    assert facts["scores"]["acc"] > 0.9
    kinds = found.path.str[0]
    assert pd.crosstab(kinds, found.cluster).max(axis=1).sum() / 48 == pytest.approx(facts["scores"]["acc"])


ODD = ["a'b.png", 'a"b.png', "100%.png", "a,b;c.png", "new\nline.png", "=1+1.png", "-x.png", " y .png", "日本 😀.png"]


def test_pictures_of_any_name_get_through(tmp_path, capsys, monkeypatch):
    """Also of one that is not in UTF-8, as from an old archive: the bytes in question are shown as escapes."""
    names = [*map(os.fsencode, ODD), b"caf\xe9.png"]
    (tmp_path / "Bilder ä").mkdir()
    for i, name in enumerate(names):
        picture(i % 3, np.random.default_rng(i)).save(tmp_path / "Bilder ä" / os.fsdecode(name), "PNG")
    out, arguments = tmp_path / "out", ["--n-clusters", "2", "--epochs", "1"]
    assert main(["cluster", str(tmp_path / "Bilder ä"), "--out", str(out), *arguments]) == 0
    assert set(pd.read_csv(out / "clusters.csv").path) == {*ODD, "caf\\xe9.png"}
    links = [unquote_to_bytes(link) for link in Links((out / "index.html").read_text()).found["href"] if link[0] != "#"]
    assert {os.path.basename(link) for link in links} == set(names)
    assert all(os.path.exists(os.path.join(os.fsencode(out), link)) for link in links)

    paths = [os.fsencode(tmp_path / "Bilder ä") + b"/" + name for name in names if b"\n" not in name]
    for encoding in ("utf-8", "ascii"):
        screen = io.TextIOWrapper(io.BytesIO(), encoding)
        listed = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + b"\r\n".join(paths)), encoding)
        monkeypatch.setattr("sys.stdin", listed)
        monkeypatch.setattr("sys.stdout", screen)
        assert main(["predict", str(out), "-"]) == 0
        screen.seek(0)
        assert [os.fsencode(json.loads(line)["path"]) for line in screen.buffer.getvalue().splitlines()] == paths
    for kind in ("npz", "parquet") if importlib.util.find_spec("pyarrow") else ("npz",):
        assert main(["embed", str(out), str(tmp_path / "Bilder ä"), "--out", str(tmp_path / f"e.{kind}")]) == 0


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = {"href": [], "src": []}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in self.found:
                self.found[name].append(value)


def test_gallery_shows_every_picture_once_and_its_links_lead_to_files(photos, clustered):
    links = Links((clustered / "index.html").read_text()).found
    originals = [unquote(link) for link in links["href"] if not link.startswith("#")]
    assert {(clustered / link).resolve() for link in originals} == {p.resolve() for p in photos.rglob("*.png")}
    assert len(originals) == 48
    assert all((clustered / link).exists() for link in links["src"])
    assert len({*links["src"]}) == 48
    sheets = sorted(p.name for p in (clustered / "sheets").iterdir())
    assert sheets == [f"cluster-{k:02d}.png" for k in sorted(set(pd.read_csv(clustered / "clusters.csv").cluster))]


def test_pictures_are_shown_undistorted():
    """A disc in a wide picture, squeezed to a square as it is kept, is round on the sheet."""
    wide = Image.new("RGB", (200, 100))
    ImageDraw.Draw(wide).ellipse((70, 20, 130, 80), "white")
    kept = np.asarray(wide.resize((64, 64))).transpose(2, 0, 1)
    shown = np.asarray(gallery._picture(kept, np.array([100, 200]), 100))[..., 0] > 128
    height, width = shown.any(1).sum(), shown.any(0).sum()
    assert abs(height - 60) <= 3
    assert abs(width - 60) <= 3


def lines_of(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    return [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_predict_says_of_a_folder_what_training_said(photos, clustered, capsys):
    lines, timing = lines_of(capsys, "predict", str(clustered), str(photos))
    found = pd.read_csv(clustered / "clusters.csv")
    assert [line["path"] for line in lines] == [str(photos / path) for path in found.path]
    assert [line["cluster"] for line in lines] == found.cluster.tolist()
    assert [line["confidence"] for line in lines] == pytest.approx(found.confidence.tolist(), abs=1e-4)
    assert re.search(r"48 pictures in .* a second; from path to answer \d+ ms", timing)


def test_predict_takes_paths_from_standard_input_and_goes_on_after_a_bad_one(photos, clustered, capsys, monkeypatch):
    good = sorted(photos.rglob("*.png"))[:2]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{good[0]}\nnowhere.png\n\n{good[1]}\n"))
    lines, err = lines_of(capsys, "predict", str(clustered / "model.safetensors"), "-", code=3)
    assert [line["path"] for line in lines] == [str(good[0]), "nowhere.png", str(good[1])]
    assert lines[1] == {"path": "nowhere.png", "error": "no such file"}
    assert "ccrepro: error: 1 of 3 pictures are bad" in err


def test_a_slow_stream_is_answered_picture_by_picture(photos, clustered):
    """The answer to the first path comes before the second path is written."""
    path = str(next(photos.rglob("0*.png")))
    command = [sys.executable, "-m", "ccrepro", "predict", str(clustered), "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(2):
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["path"] == path
        process.stdin.close()
        process.stdout.read()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def model(clustered):
    from ccrepro.checkpoint import load_model

    return load_model(clustered)


def test_a_stream_is_read_no_further_ahead_than_needed(photos, model):
    """Memory stays flat: of an endless stream, only a few blocks are ever held."""
    trained, settings, about = model
    path, taken = str(next(photos.rglob("0*.png"))), []
    endless = (taken.append(i) or path for i in iter(int, 1))
    answers = stream.predict(trained, settings.image_size, about["side"], endless)
    seen = [next(answers) for _ in range(2_000)]
    time.sleep(0.2)
    assert len(taken) <= 2_000 + (stream.AHEAD + 2) * stream.block_size(trained)
    assert len({(a.cluster, a.confidence) for a in seen}) == 1
    answers.close()


def test_a_stream_does_not_depend_on_how_it_comes(photos, model):
    trained, settings, about = model
    paths = [str(p) for p in sorted(photos.rglob("*.png"))]

    def halting():
        for i, path in enumerate(paths):
            if i % 7 == 3:
                time.sleep(0.05)
            yield path

    fast = list(stream.predict(trained, settings.image_size, about["side"], paths))
    slow = list(stream.predict(trained, settings.image_size, about["side"], halting()))
    assert [(a.path, a.cluster, a.confidence) for a in fast] == [(a.path, a.cluster, a.confidence) for a in slow]


def test_an_error_in_the_source_is_raised(model):
    trained, settings, about = model
    broken = (1 / 0 for _ in range(3))
    with pytest.raises(ZeroDivisionError):
        list(stream.predict(trained, settings.image_size, about["side"], broken))


def test_embed_writes_features(photos, clustered, tmp_path, capsys):
    assert main(["embed", str(clustered), str(photos / "a"), "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["path"].tolist() == [str(p) for p in sorted((photos / "a").iterdir())]
        assert arrays["z"].shape == (16, 128)
        np.testing.assert_allclose(np.linalg.norm(arrays["z"], axis=1), 1, atol=1e-5)
        assert arrays["h"].shape[0] == 16
    pytest.importorskip("pyarrow")
    assert main(["embed", str(clustered), str(photos / "a"), "--out", str(tmp_path / "e.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "e.parquet").path.tolist() == [str(p) for p in sorted((photos / "a").iterdir())]


def test_sweep_suggests_a_number_says_why_and_repeats_nothing(photos, tmp_path, capsys):
    arguments = ["cluster", str(photos), "--n-clusters", "2:4", "--out", str(tmp_path), "--epochs", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    suggested = int(re.search(r"suggested: K=(\d): the product of two agreements is largest there", printed)[1])
    assert pd.read_csv(tmp_path / "sweep.csv").n_clusters.tolist() == [2, 3, 4]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "summary.json").read_text())["n_clusters"] == suggested
    assert f"K = {suggested} was suggested: the product" in (tmp_path / "index.html").read_text()
    assert "K=3: number 2 of 3" in printed
    assert not list(tmp_path.rglob("training"))
    before = {name: (tmp_path / name).read_text() for name in ("sweep.csv", "clusters.csv", "summary.json")}
    other = tmp_path / f"sweep/00{5 - suggested if suggested < 4 else 2}/model.safetensors"
    other.unlink()  # as if that training had been stopped; the two others are done
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert len(re.findall("trained before", printed)) == 2
    assert {name: (tmp_path / name).read_text() for name in before} == before


def test_what_is_trained_is_not_trained_again_unless_something_changed(photos, tmp_path, capsys):
    def trained(*more):
        capsys.readouterr()
        assert main(["cluster", str(photos / "a"), "--n-clusters", "2", "--out", str(tmp_path), "--epochs", *more]) == 0
        return "trained before" not in capsys.readouterr().out

    assert trained("1")
    assert not trained("1", "--checkpoint-seconds", "5")  # of the machine, not of the result
    assert trained("2")
    blob = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(blob[:-9])
    assert trained("2")
    assert not trained("2")


def test_suggestion_is_the_most_consistent_number():
    measured = pd.DataFrame({"n_clusters": [2, 3, 4], "agreement": [0.9, 0.8, 0.5], "with_kmeans": [0.3, 0.9, 0.95]})
    k, reason = collection.suggest(measured)
    assert k == 3
    assert "two augmented views (0.80), and of the clusters with k-means on the features (0.90)" in reason
    assert "hint" not in reason
    weak = pd.DataFrame({"n_clusters": [2, 3, 4], "agreement": [0.3, 0.29, -0.1], "with_kmeans": [0.5, 0.5, -0.9]})
    k, reason = collection.suggest(weak)
    assert k == 2
    assert "Nearly as good: 3." in reason
    assert "no K tried divides these pictures firmly" in reason


@pytest.mark.parametrize(("text", "numbers"), [("10", [10]), ("2:5", [2, 3, 4, 5]), ("2:8:3", [2, 5, 8])])
def test_numbers_of_clusters(text, numbers):
    assert collection.parse_clusters(text) == numbers


@pytest.mark.parametrize("text", ["1", "x", "5:2", "2:", "2:8:0", "2:3:4:5", ""])
def test_bad_numbers_of_clusters(text):
    with pytest.raises(ConfigError, match="Write 10, or 2:20"):
        collection.parse_clusters(text)


def error_of(capsys, *arguments):
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("ccrepro: error: ")
    return code, err.splitlines()[-1]


def test_bad_pictures_are_listed_or_left_out(photos, tmp_path, capsys):
    folder = tmp_path / "some"
    folder.mkdir()
    for i, path in enumerate(sorted(photos.rglob("*.png"))[:40]):
        (folder / f"{i}.png").write_bytes(path.read_bytes() if i != 7 else b"nothing")
    arguments = ["cluster", folder, "--n-clusters", "2", "--out", tmp_path / "out", "--epochs", "1"]
    code, line = error_of(capsys, *arguments)
    assert code == 3
    assert "1 of 40 pictures are bad" in line
    assert main([str(a) for a in arguments] + ["--skip-bad"]) == 0
    assert f"left out: {folder / '7.png'}: not an image" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "out/clusters.csv")) == 39
    assert "scores" not in json.loads((tmp_path / "out/summary.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["cluster", "nowhere", "--n-clusters", "3", "--out", "out"], 3, "no folder or picture nowhere"),
        (["cluster", "empty", "--n-clusters", "3", "--out", "out"], 3, "no pictures in empty"),
        (["cluster", ".", "--n-clusters", "1", "--out", "out"], 2, "n_clusters is '1'"),
        (["cluster", ".", "--n-clusters", "3", "--out", "out", "--epochs", "-1"], 2, "epochs is -1"),
        (["cluster", ".", "--n-clusters", "3"], 2, "--out"),
        (["cluster", "some", "--n-clusters", "3", "--out", "some/out"], 2, "some/out lies in some"),
        (["cluster", "some", "--n-clusters", "3", "--out", "file"], 1, "Not a directory"),
        (["cluster", "some", "--n-clusters", "2:9", "--out", "out"], 2, "n_clusters is 9, but the collection has 4"),
        (["cluster", "some/0.png", "--n-clusters", "2", "--out", "out"], 2, "but the collection has 1 images"),
        (["cluster", "some", "--n-clusters", "2", "--out", "out", "--heads", "instance"], 2, "heads is instance"),
        (["predict", "nowhere", "."], 4, "cannot read nowhere"),
        (["embed", "nowhere", ".", "--out", "e.txt"], 2, "FILE.npz or FILE.parquet"),
        (["evaluate"], 2, "A MODEL, or --authors-checkpoint"),
        (["evaluate", "--authors-checkpoint", "nowhere"], 4, "cannot read nowhere"),
        (["evaluate", "--authors-checkpoint", "c.tar", "--dataset", "digits"], 2, "data set of the authors 'digits'"),
        (["table", "mian_results"], 2, "Write 'main_results'"),
        (["watch", "."], 3, "no log"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(arguments, code, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("empty", "some"):
        (tmp_path / name).mkdir()
    for i in range(4):
        picture(i % 3, np.random.default_rng(i)).save(tmp_path / f"some/{i}.png")
    found, line = error_of(capsys, *arguments)
    assert found == code
    assert says in line
    assert not list(tmp_path.rglob("log.jsonl")), "nothing was trained"


@pytest.mark.parametrize("name", ["training", "packed", "packed.partial", "sheets", "thumbs"])
def test_folders_of_others_are_never_replaced(photos, name, tmp_path, capsys):
    """As in ``ccrepro cluster data/training --out data``, which had removed the pictures at the end."""
    shutil.copytree(photos / "a", tmp_path / name)
    arguments = ["cluster", tmp_path / name, "--n-clusters", "2", "--out", tmp_path, "--epochs", "1"]
    code, line = error_of(capsys, *arguments)
    assert code == 2
    assert f"{tmp_path / name} is there, and not of an earlier cluster" in line
    assert len(list((tmp_path / name).iterdir())) == 16
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / "summary.json").write_text("{}")  # of another program
    assert error_of(capsys, *arguments) == (code, line)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("mine")
    arguments[1], arguments[5] = photos, tmp_path / "site"
    assert "site/index.html is there, and not of an earlier cluster" in error_of(capsys, *arguments)[1]


def test_a_second_process_on_the_same_results_is_told(photos, tmp_path, capsys):
    with files.lock(tmp_path / "training"):
        code, line = error_of(capsys, "cluster", photos, "--n-clusters", "3", "--out", tmp_path)
    assert code == 6
    assert "is at work on this run" in line


def test_a_model_without_a_trained_cluster_head_is_scored_by_kmeans_alone(root, tmp_path, capsys):
    from ccrepro import checkpoint
    from ccrepro.model import build

    settings = config.recipe("digits", variant="instance-only")
    model = str(checkpoint.save_model(build(settings, 1), settings, tmp_path / "m.safetensors"))
    assert main(["evaluate", model]) == 0
    assert re.findall(r"digits, (.*?):", capsys.readouterr().out) == ["k-means on features"]
    code, line = error_of(capsys, "predict", model, tmp_path)
    assert code == 2
    assert "Its cluster head was not trained" in line


def test_progress_says_how_far_and_how_long(monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 120.0)
    timing = stream.Timing(images=200, started=100.0)
    assert timing.so_far(1_000) == "200 pictures of 1,000, 80 s left, 10.0 a second"
    assert timing.so_far(None) == "200 pictures, 10.0 a second"


def test_evaluate_scores_a_run_as_its_record_did(root, tiny, digits, capsys):
    from ccrepro import run, train

    settings = config.recipe("digits", epochs=1)
    this = run.Run(settings, digits)
    record = this.finish(*train.train(settings, digits, this.report))
    capsys.readouterr()
    assert main(["evaluate", str(this.folder)]) == 0
    printed = capsys.readouterr().out
    assert f"cluster head: NMI {record['scores']['nmi']:.4f}  ACC {record['scores']['acc']:.4f}" in printed


def test_authors_checkpoint_of_another_k_is_refused_before_data_is_read(tmp_path, capsys):
    authors_file(tmp_path / "c.tar", n_clusters=15)
    code, line = error_of(
        capsys, "evaluate", "--authors-checkpoint", tmp_path / "c.tar", "--dataset", "cifar10", "--backbone", "resnet18"
    )
    assert code == 4
    assert "K=15" in line
    assert "K=10" in line


def test_authors_checkpoint_is_scored(tmp_path, capsys, monkeypatch):
    from ccrepro import datasets, foreign

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 3, 32, 32)).astype(np.uint8), np.arange(20) % 10
    data = datasets.ImageSet("cifar10", images, np.full((20, 2), 32), labels, tuple("0123456789"), "made here")
    monkeypatch.setattr(datasets, "load", lambda name, root: data)
    settings = config.recipe("cifar10", "paper", backbone="resnet18")
    foreign.save_authors(foreign.build(settings), settings, tmp_path / "c.tar", 0)
    arguments = ["--authors-checkpoint", str(tmp_path / "c.tar"), "--dataset", "cifar10", "--backbone", "resnet18"]
    assert main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "c.tar: resnet18, K=10, epoch 0 as stored" in printed
    assert "cifar10, cluster head: NMI" in printed


def test_table_prints_reported_beside_ours(capsys):
    assert main(["table", "main_results"]) == 0
    assert "| CIFAR-10" in capsys.readouterr().out


def test_watch_shows_the_last_epoch_and_the_curve(clustered, tmp_path, capsys):
    assert main(["watch", str(clustered)]) == 0
    printed = capsys.readouterr().out
    assert "epoch 25/25" in printed
    log = (clustered / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == list(range(1, 26))
    (tmp_path / "log.jsonl").write_text("\n".join([*log[:3], log[3][:30]]))
    assert [e["epoch"] for e in watch.read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
    assert main(["watch", str(tmp_path), "--once"]) == 0


def test_watch_waits_for_the_first_epoch_of_a_run_and_says_when_it_has_stopped(tmp_path, capsys, monkeypatch):
    epoch = {"epoch": 1, "epochs": 2, "loss": 5.0, "entropy": 0.0, "largest_share": 1.0, "seconds": 30}
    held = files.lock(tmp_path / "run/training")  # as while pictures are decoded

    def meanwhile(seconds):
        if not (tmp_path / "run/log.jsonl").exists():
            (tmp_path / "run/log.jsonl").write_text(json.dumps(epoch) + "\n")
        elif not held.closed:
            held.close()
            (tmp_path / "run/training/lock").write_text(f"process {gone.pid} on {socket.gethostname()}\n")
        else:
            raise KeyboardInterrupt  # the usual way out of it

    with subprocess.Popen(["true"]) as gone:
        pass
    monkeypatch.setattr(time, "sleep", meanwhile)
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["watch", str(tmp_path / "run")]) == 0
    waiting, first, curve, again, _, stopped = capsys.readouterr().out.splitlines()
    assert waiting == "run: no epoch yet"
    assert first == again
    assert first.startswith("run  epoch 1/2  loss 5.000")
    assert len(curve) <= 40
    assert stopped.startswith("  stopped: no process is at work on it")


def test_watch_follows_a_sweep_to_its_end(tmp_path, capsys):
    epoch = {"epochs": 2, "loss": 5.0, "entropy": 0.0, "largest_share": 1.0, "seconds": 30}
    for k, done in (("002", 2), ("003", 1)):
        place = tmp_path / "out/sweep" / k
        place.mkdir(parents=True)
        (place / "log.jsonl").write_text("".join(json.dumps({"epoch": e + 1} | epoch) + "\n" for e in range(done)))
        os.utime(place / "log.jsonl", (int(k), int(k)))
    assert main(["watch", str(tmp_path / "out"), "--once"]) == 0
    assert "out/sweep/003  epoch 1/2" in (printed := capsys.readouterr().out)
    assert "30 s left" in printed
    complete = watch.read_log(tmp_path / "out/sweep/002/log.jsonl")
    assert watch.done(tmp_path / "out", complete)
    (tmp_path / "out/training").mkdir()  # as long as the command runs
    assert not watch.done(tmp_path / "out", complete)


def test_curve_is_highest_where_the_value_is():
    assert watch.curve([0.0, 7.0, 3.0]) == "▁█▄  0.00 → 3.00"
    assert watch.curve([1.0, 1.0]).startswith("▁▁")
    assert len(watch.curve(list(map(float, range(1000)))).split()[0]) == watch.WIDTH


def test_pretrained_start_prints_kmeans_on_its_features(photos, tmp_path, capsys):
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r.pth")
    arguments = ["--pretrained", str(tmp_path / "r.pth"), "--epochs", "1", "--image-size", "32"]
    assert main(["cluster", str(photos), "--n-clusters", "3", "--out", str(tmp_path / "out"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "resnet18 from ImageNet" in printed
    assert "k-means on the pretrained features: NMI" in printed


def test_own_recipe_follows_the_pictures():
    def chosen(n, side, **more):
        made = config.own_recipe(5, n, (3, side, side), **more)
        return made.backbone, made.stem, made.image_size, made.batch_size

    assert chosen(100, 8) == ("small", "cifar", 8, 32)
    assert chosen(2_000, 48) == ("resnet18", "cifar", 48, 250)
    assert chosen(90_000, 256) == ("resnet18", "imagenet", 128, 256)
    assert chosen(20, 256)[-1] == 20
    assert chosen(100, 32, pretrained="imagenet") == ("resnet18", "imagenet", 128, 32)
    assert config.own_recipe(5, 5_000, (3, 64, 64)).lr == pytest.approx(0.2)


def test_tensorboard_gets_every_number_of_every_epoch(root, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = ["--sample", "320", "--batch-size", "64", "--epochs", "2"]
    assert main(["train", "digits", *small, "--log", "tensorboard"]) == 0
    (folder,) = (root / "runs/demo/digits").iterdir()
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "entropy", "gradient_norm"):
        written = events.Scalars(name)
        assert [e.step for e in written] == [1, 2]
        assert [e.value for e in written] == pytest.approx([e[name] for e in log])


def test_tensorboard_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"not installed.*pip install 'ccrepro\[tensorboard\]'"):
        watch.also_tensorboard(print, tmp_path)
