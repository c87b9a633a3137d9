"""A folder of images is clustered: what is written, what is trained again, and what is never replaced."""

import json
import os
from urllib.parse import unquote_to_bytes

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ccrepro.errors import ConfigError, DataError, ImageError, LockedError
from ccrepro.own_images import cluster, inputs, predict
from ccrepro.runtime import storage


def run(folder, out, n_clusters=2, skip_bad=False, **settings):
    cluster.run(folder, n_clusters, out, skip_bad, settings={"epochs": 1, **settings})


def test_csv_has_every_image_and_the_kinds_are_found(folder, clustered):
    found = pd.read_csv(clustered / "clusters.csv")
    assert list(found.columns) == ["path", "cluster", "confidence"]
    assert sorted(found.path) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    assert found.confidence.between(1 / 3, 1).all()
    facts = json.loads((clustered / "summary.json").read_text())
    assert facts["sizes"] == np.bincount(found.cluster, minlength=3).tolist()
    assert facts["scores"]["acc"] > 0.8
    kinds = found.path.str[0]
    assert pd.crosstab(kinds, found.cluster).max(axis=1).sum() / 48 == pytest.approx(facts["scores"]["acc"])
    log = (clustered / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == list(range(1, 26))
    assert not (clustered / "training").exists()


ODD = [
    "a'b.png",
    'a"b.png',
    "100%.png",
    "a,b;c.png",
    "new\nline.png",
    "\rreturn.png",
    "\x85\u2028 \x1b[31m\r\n.png",
    "=1+1.png",
    "-x.png",
    " y .png",
    "日本 😀.png",
]


def test_images_of_any_name_get_through(tmp_path, save_images, embedded, capsys):
    """Also of one that is not in UTF-8, as from an old archive: the bytes in question are shown as escapes."""
    names, folder, out = [*map(os.fsencode, ODD), b"caf\xe9.png"], tmp_path / "Bilder ä", tmp_path / "out"
    save_images([folder / os.fsdecode(name) for name in names])
    run(folder, out)
    assert set(pd.read_csv(out / "clusters.csv").path) == {*ODD, "caf\\xe9.png"}
    links = [unquote_to_bytes(link) for link in embedded(out / "index.html")["url"]]
    assert {os.path.basename(link) for link in links} == set(names)
    assert all(os.path.exists(os.path.join(os.fsencode(out), link)) for link in links)
    predict.embed(out, str(folder), out=str(tmp_path / "e.npz"))
    with np.load(tmp_path / "e.npz") as arrays:
        assert {os.fsencode(os.path.basename(path)) for path in arrays["path"]} == set(names)


def test_what_is_trained_is_not_trained_again_unless_something_changed(folder, tmp_path, capsys):
    def trained(**more):
        capsys.readouterr()
        run(folder / "a", tmp_path, **more)
        return "trained before" not in capsys.readouterr().out

    assert trained()
    assert not trained(device="cpu")  # of the machine, not of the result
    assert trained(epochs=2)
    blob = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(blob[:-9])
    assert trained(epochs=2)
    assert not trained(epochs=2)


def test_files_of_other_kinds_are_counted(tmp_path, save_images, capsys):
    save_images([tmp_path / "a/b.png", tmp_path / "a/c/d.png"])
    for name in ("a/e.heic", "a/f.heic", "a/notes", "other/a.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "a/lost.png").symlink_to("nowhere.png")
    assert [path.name for path in inputs.look_through(tmp_path / "a")] == ["b.png", "d.png"]
    assert "not read: 2 .heic, 1 broken link, 1 without ending" in capsys.readouterr().err
    with pytest.raises(ImageError, match=r"no images in .*other"):
        inputs.look_through(tmp_path / "other")
    assert "not read: 1 .heic" in capsys.readouterr().err


def test_a_folder_that_cannot_be_listed_is_named_or_left_out(tmp_path, save_images, monkeypatch, capsys):
    save_images([tmp_path / "some/a/b.png", tmp_path / "some/c/d.png"])
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("some/c"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match=r"Cannot list the folder .*some/c: Permission denied"):
        inputs.look_through(tmp_path / "some")
    assert inputs.look_through(tmp_path / "some", skip_bad=True) == [tmp_path / "some/a/b.png"]
    assert "left out, folders that cannot be listed: 1" in capsys.readouterr().err


def test_deep_images_have_one_range_which_prediction_keeps(tmp_path, monkeypatch, capsys):
    """Masks, too, and files of several pages, get a word; and ~ is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    for i in range(40):
        (tmp_path / "some").mkdir(exist_ok=True)
        page = Image.fromarray(rng.integers(0, 4096 if i == 39 else 300, (12, 12)).astype(np.uint16))
        page.save(tmp_path / f"some/{i:02d}.tif", save_all=i > 37, append_images=[page] * (i > 37))
    run("~/some", "~/out")
    printed = capsys.readouterr()
    top = int(np.asarray(Image.open(tmp_path / "some/39.tif")).max())
    assert f"0 black and {top} white where deeper than 8 bits" in printed.out
    assert "files of several pages or frames, of which the first is used: 2" in printed.err
    predict.predict("~/out", "~/some")
    found = [json.loads(line)["cluster"] for line in capsys.readouterr().out.splitlines()]
    assert found == pd.read_csv(tmp_path / "out/clusters.csv").cluster.tolist()
    (tmp_path / "some/39.tif").unlink()
    predict.predict("~/out", "~/some")
    assert [json.loads(line)["cluster"] for line in capsys.readouterr().out.splitlines()] == found[:-1]
    for i in range(40):
        Image.fromarray(rng.integers(0, 2, (12, 12)).astype(np.uint8)).save(tmp_path / f"some/{i:02d}.png")
        (tmp_path / f"some/{i:02d}.tif").unlink(missing_ok=True)
    run("~/some", "~/masks")
    assert "note: no pixel is brighter than 1 of 255" in capsys.readouterr().out


def test_bad_images_are_listed_or_left_out(tmp_path, save_images, capsys):
    some, out = tmp_path / "some", tmp_path / "out"
    save_images([some / f"{i:02d}.png" for i in range(40)])
    (some / "07.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="1 of 40 images are bad"):
        run(some, out)
    for _ in range(2):
        run(some, out, skip_bad=True)
        found = pd.read_csv(out / "clusters.csv")
        assert found.path.tolist() == [f"{i:02d}.png" for i in range(40) if i != 7]
    printed = capsys.readouterr()
    assert printed.err.count(f"bad image: {some / '07.png'}: not an image") == 2
    assert "trained before" in printed.out, "the second time nothing is decoded either"
    assert "scores" not in json.loads((out / "summary.json").read_text())
    with pytest.raises(DataError, match="1 of 40 images are bad"):
        run(some, out)
    assert len(pd.read_csv(out / "clusters.csv")) == 39
    for path in some.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="40 of 40 images are bad"):
        run(some, tmp_path / "none", skip_bad=True)


def test_what_cannot_be_is_told_before_anything_is_trained(tmp_path, save_images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images([tmp_path / f"some/{i}.png" for i in range(4)])
    for arguments, error, says in (
        (("nowhere", "out"), ImageError, "no folder or image nowhere"),
        (("some", "some/out"), ConfigError, "one lies in the other"),
        (("some", "out", 1), ConfigError, "n_clusters is 1"),
        (("some", "out", 9), ConfigError, "n_clusters is 9, but .* has 4 images"),
        (("some/0.png", "out"), ConfigError, "has 1 images"),
    ):
        with pytest.raises(error, match=says):
            run(*arguments)
    assert not list(tmp_path.rglob("log.jsonl"))


def test_files_of_others_are_never_replaced(folder, tmp_path):
    """As in ``ccrepro cluster data/training --out data``, which had removed the images at the end."""
    with pytest.raises(ConfigError, match=f"Of {folder / 'a'} and {folder}, one lies in the other"):
        run(folder / "a", folder)
    (tmp_path / "out/training").mkdir(parents=True)
    with pytest.raises(ConfigError, match="out holds other files"):
        run(folder, tmp_path / "out")
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ConfigError, match=f"{tmp_path} holds other files"):
        run(folder, tmp_path)


def test_a_second_process_on_the_same_results_is_told(folder, tmp_path):
    with storage.lock(tmp_path / "training"), pytest.raises(LockedError):
        run(folder, tmp_path)
