"""A trained model put to use: JSON lines of a stream, features in a file, scores on a data set."""

import io
import json
import os
import re
import threading

import numpy as np
import pandas as pd
import pytest

from ccrepro.errors import ConfigError, ImageError
from ccrepro.evaluate import evaluate, score
from ccrepro.model import build
from ccrepro.own_images import predict
from ccrepro.recipes import recipe
from ccrepro.runs import resume
from ccrepro.runs.weights import save_model


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_predict_says_of_a_folder_what_training_said(folder, clustered, capsys):
    capsys.readouterr()
    predict.predict(clustered, str(folder))
    lines = lines_of(capsys)
    found = pd.read_csv(clustered / "clusters.csv")
    assert [line["path"] for line in lines] == [str(folder / path) for path in found.path]
    assert [line["cluster"] for line in lines] == found.cluster.tolist()
    assert [line["confidence"] for line in lines] == pytest.approx(found.confidence.tolist(), abs=1e-4)


def test_predict_takes_paths_from_standard_input_and_goes_on_after_a_bad_one(folder, clustered, capsys, monkeypatch):
    good = sorted(folder.rglob("*.png"))[:2]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{good[0]}\nnowhere.png\n\n{good[1]}\n"))
    capsys.readouterr()
    with pytest.raises(ImageError, match="1 of 3 images are bad"):
        predict.predict(clustered / "model.safetensors", "-")
    lines = lines_of(capsys)
    assert [line["path"] for line in lines] == [str(good[0]), "nowhere.png", str(good[1])]
    assert lines[1] == {"path": "nowhere.png", "error": "no such file"}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_paths_of_any_bytes_come_back_as_they_went_in(encoding, save_images, clustered, tmp_path, monkeypatch):
    paths = [os.fsencode(tmp_path) + name for name in (b"/caf\xe9.png", "/日本 😀.png".encode(), b"/ y .png")]
    save_images([tmp_path / os.fsdecode(path) for path in paths])
    screen = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + b"\r\n".join(paths)), encoding))
    monkeypatch.setattr("sys.stdout", screen)
    predict.predict(clustered, "-")
    screen.seek(0)
    assert [os.fsencode(json.loads(line)["path"]) for line in screen.buffer.getvalue().splitlines()] == paths


def test_a_slow_stream_is_answered_image_by_image(folder, clustered, monkeypatch):
    """The answer to the first path comes before the second path is written."""
    path, (listed, give), (take, screen) = str(next(folder.rglob("0*.png"))), os.pipe(), os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(listed))
    monkeypatch.setattr("sys.stdout", os.fdopen(screen, "w"))
    answering = threading.Thread(target=predict.predict, args=(clustered, "-"))
    answering.start()
    with os.fdopen(give, "w") as paths, os.fdopen(take) as answers:
        for _ in range(2):
            print(path, file=paths, flush=True)
            assert json.loads(answers.readline())["path"] == path
    answering.join(10)


def test_embed_writes_features_of_what_can_be_read(folder, clustered, tmp_path, capsys, monkeypatch):
    good = [str(path) for path in sorted((folder / "a").iterdir())]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(["nowhere.png", *good])))
    with pytest.raises(ImageError, match="1 of 17 images are bad"):
        predict.embed(clustered, "-", out=str(tmp_path / "e.npz"))
    assert "left out: nowhere.png: no such file" in capsys.readouterr().err
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["path"].tolist() == good
        assert arrays["z"].shape == (16, 128)
        np.testing.assert_allclose(np.linalg.norm(arrays["z"], axis=1), 1, atol=1e-5)
        assert len(arrays["h"]) == len(arrays["cluster"]) == len(arrays["confidence"]) == 16
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        predict.embed(clustered, str(folder), out=str(tmp_path / "e.txt"))


def test_a_model_without_a_trained_cluster_head_is_scored_by_kmeans_alone(tmp_path, capsys):
    config = recipe("digits", "demo", "instance-only")
    save_model(build(config, 1), config, tmp_path / "model.safetensors")
    predict.evaluate(tmp_path)
    assert re.findall(r"digits, (.*?):", capsys.readouterr().out) == ["k-means on features"]
    with pytest.raises(ConfigError, match="no trained cluster head"):
        predict.predict(tmp_path, str(tmp_path))


def test_evaluate_scores_as_a_record_does(digits, tmp_path, capsys):
    config = recipe("digits", "demo", epochs=1)
    model, _ = resume.fit(config, digits)
    expected = score(config, digits, evaluate(config, digits, model))
    save_model(model, config, tmp_path / "model.safetensors")
    predict.evaluate(tmp_path)
    printed = capsys.readouterr().out
    for name, key in (("cluster head", "scores"), ("k-means on features", "scores_kmeans_on_features")):
        nmi, acc, ari = expected[key].values()
        assert f"{name}: NMI {nmi:.4f}  ACC {acc:.4f}  ARI {ari:.4f}" in printed


def test_images_of_your_own_have_no_labels_and_other_channels_do_not_fit(clustered):
    with pytest.raises(ConfigError, match="Name a data set"):
        predict.evaluate(clustered)
    with pytest.raises(ImageError, match="digits has images of 1 channels, but the model takes 3"):
        predict.evaluate(clustered, dataset="digits")
