import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ccrepro import data
from ccrepro.data import readers
from ccrepro.data.registry import DATASETS
from ccrepro.errors import ConfigError, DataError
from ccrepro.runtime.ragged import stacked


@pytest.fixture
def tiny_imagenet(tmp_path, monkeypatch):
    """Tiny-ImageNet of three classes with two images each, below a data root."""
    facts = {"images": 6, "classes": 3, "reader": partial(readers.tiny_imagenet, classes=3, per_class=2)}
    monkeypatch.setitem(DATASETS, "tiny-imagenet", DATASETS["tiny-imagenet"]._replace(**facts))
    for name in ("n3", "n1", "n2"):
        folder = tmp_path / "tiny-imagenet-200/train" / name / "images"
        folder.mkdir(parents=True)
        for color in ("blue", "red"):
            Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
    return tmp_path


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown data set 'cifar11'\. Did you mean 'cifar10'"):
        data.load("cifar11")


def test_packed_data_outlives_its_source_and_is_made_anew_where_that_changes(tiny_imagenet):
    before = data.load("tiny-imagenet", tiny_imagenet)
    assert (before.images.shape, before.class_names) == ((6, 3, 64, 64), ("n1", "n2", "n3"))
    base = (tiny_imagenet / "tiny-imagenet-200").rename(tiny_imagenet / "away")
    assert data.load("tiny-imagenet", tiny_imagenet).sha256 == before.sha256
    base = base.rename(tiny_imagenet / "tiny-imagenet-200")
    Image.new("RGB", (64, 64), "green").save(base / "train/n1/images/blue.png")
    changed = data.load("tiny-imagenet", tiny_imagenet)
    assert changed.sha256 != before.sha256
    assert changed.images[0, :, 0, 0].tolist() == [0, 128, 0]


def test_a_wrong_count_of_images_is_told(tiny_imagenet, monkeypatch):
    monkeypatch.setitem(DATASETS, "tiny-imagenet", DATASETS["tiny-imagenet"]._replace(images=7))
    with pytest.raises(DataError, match=r"has 6 images, 3 classes, .*, not 7 images, 3 classes"):
        data.load("tiny-imagenet", tiny_imagenet)


def test_an_incomplete_folder_is_told_and_never_replaced(tiny_imagenet):
    """Its owner may have changed it: it is not fetched again before it is removed."""
    (tiny_imagenet / "tiny-imagenet-200/train/n3/images/red.png").unlink()
    with pytest.raises(DataError, match=r"holds 2; n3: 1\. Remove .*tiny-imagenet-200, and"):
        data.load("tiny-imagenet", tiny_imagenet)
    assert len(list(tiny_imagenet.rglob("*.png"))) == 5


@pytest.mark.slow
def test_of_several_processes_one_packs_and_all_get_the_same(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "mine/n1").mkdir(parents=True)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / f"mine/n1/{i}.png")
    code = f"""
from ccrepro import data
from ccrepro.data import cache, readers
reader = readers.synsets("mine", {{"n1": "one"}})
made = data.DATASETS["imagenette"]._replace(images=40, classes=1, folder="mine", reader=reader)
data.DATASETS["imagenette"] = made
write = cache.write
cache.write = lambda *arguments: print("packs") or write(*arguments)
print(data.load("imagenette", {str(tmp_path)!r}).sha256)
"""
    several = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lines = [line for each in several for line in each.communicate(timeout=300)[0].splitlines()]
    hashes = [line for line in lines if len(line) == 64]
    assert lines.count("packs") == 1
    assert len(hashes) == 3
    assert len(set(hashes)) == 1


def test_a_sample_keeps_images_with_their_labels(patterns):
    part = data.sample(patterns, 20, seed=1)
    assert len(part.images) == len(part.labels) == 20
    whole = {image.tobytes(): label for image, label in zip(patterns.images, patterns.labels, strict=True)}
    assert [whole[image.tobytes()] for image in part.images] == part.labels.tolist()
    assert np.array_equal(part.images, data.sample(patterns, 20, seed=1).images)
    assert not np.array_equal(part.images, data.sample(patterns, 20, seed=2).images)
    assert all(data.sample(patterns, n, seed=0) is patterns for n in (0, 96, 10_000))


def test_channel_statistics_are_those_of_all_pixels():
    images = np.random.default_rng(0).integers(0, 256, (23, 3, 5, 6), np.uint8)
    mean, deviation = data.channel_statistics(images, at_once=7 * 30)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)))
    np.testing.assert_allclose(deviation, (images / 255).std((0, 2, 3)))
    parts = stacked([images[0], images[1, :, :3], images[2, :, :, 1:]])
    pixels = np.concatenate([image.reshape(3, -1) for image in parts], 1) / 255
    np.testing.assert_allclose(data.channel_statistics(parts), (pixels.mean(1), pixels.std(1)))


def test_images_of_records_are_at_hand_or_none(tmp_path, digits):
    record = {"dataset": "digits", "seed": 3, "config": {"sample": 20}}
    assert np.array_equal(data.at_hand([record], tmp_path), data.sample(digits, 20, 3).images)
    assert data.at_hand([record | {"dataset": "cifar10"}], tmp_path) is None
    assert data.at_hand([], tmp_path) is None


def test_catalog_names_every_data_set_and_its_state(tiny_imagenet):
    shown = data.catalog(tiny_imagenet).set_index("name")
    assert list(shown.index) == list(DATASETS)
    assert shown.loc["cifar10", "images"] == "60,000"
    states = ["ships with scikit-learn", "absent", "present, not packed"]
    assert shown.loc[["digits", "imagenet10", "tiny-imagenet"], "state"].tolist() == states
    data.load("tiny-imagenet", tiny_imagenet)
    assert "packed, verified: 6 images" in data.catalog(tiny_imagenet)["state"].tolist()
    (tiny_imagenet / "packed/tiny-imagenet/labels.npy").write_bytes(b"")
    assert "present, not packed" in data.catalog(tiny_imagenet)["state"].tolist()
