import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as tv

from ccrepro.data import load, readers
from ccrepro.data.registry import DATASETS
from ccrepro.data.synsets import CIFAR100_SUPERCLASS, CIFAR100_SUPERCLASS_NAMES, IMAGENET10, IMAGENET_DOGS, IMAGENETTE
from ccrepro.errors import DataError
from ccrepro.runtime.storage import CODE

DATA = os.environ.get("CCREPRO_DATA", "nowhere")


def has(folder):
    return pytest.mark.skipif(not Path(DATA, folder).is_dir(), reason=f"needs {folder} in $CCREPRO_DATA")


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def facts(monkeypatch):
    """Let a data set be another than the paper's."""
    return lambda name, **changes: monkeypatch.setitem(DATASETS, name, DATASETS[name]._replace(**changes))


def teach(monkeypatch, kind, folder):
    """Let torchvision take the files of a folder for the official ones."""
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[name, md5(folder / name)] for name, _ in getattr(kind, attribute)])
    if hasattr(kind, "meta"):
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / kind.meta["filename"])})


def made_cifar(root, monkeypatch, kind, files, classes):
    """Write small files in CIFAR's own format."""
    rng, folder = np.random.default_rng(0), root / kind.base_folder
    made = {kind.meta["filename"]: {kind.meta["key"]: [f"class {i}" for i in range(classes)]}}
    for name, n in files.items():
        labels = {kind.meta["key"].replace("_names", "s"): (np.arange(n) % classes).tolist()}
        made[name] = {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), **labels}
    folder.mkdir()
    for name, content in made.items():
        (folder / name).write_bytes(pickle.dumps(content))
    teach(monkeypatch, kind, folder)
    return made


def made_files(folder, n):
    """A folder of n files that are named as images."""
    folder.mkdir(parents=True)
    for i in range(n):
        (folder / f"{folder.name}_{i}.JPEG").touch()


def made_classes(base, names, n):
    """Images of n sizes in each class."""
    for number, name in enumerate(names):
        (base / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8 + number, 6 + i), (200, 30, 30)).save(base / name / f"{name}_{i}.png")


def test_digits_are_scikit_learns(digits):
    pixels, labels = load_digits(return_X_y=True)
    assert (digits.images.shape, digits.images.dtype) == ((1797, 1, 8, 8), np.uint8)
    assert np.array_equal(np.round(digits.images.reshape(-1, 64) * (16 / 255)), pixels)
    assert np.array_equal(digits.labels, labels)


def test_classes_are_the_papers_and_the_stand_ins_are_not():
    assert np.bincount(CIFAR100_SUPERCLASS).tolist() == [5] * 20
    assert (len(CIFAR100_SUPERCLASS_NAMES), len(IMAGENET10), len(IMAGENET_DOGS)) == (20, 10, 15)
    assert set(IMAGENET10) & set(IMAGENET_DOGS) == {"n02085936"}  # Maltese dog
    assert "n02097130" in IMAGENET_DOGS  # giant schnauzer; another list that goes round has n02097209
    assert not set(IMAGENETTE) & set(IMAGENET10)


def test_cifar10_reads_the_pickles_in_order_and_refuses_a_damaged_one(tmp_path, monkeypatch, facts):
    facts("cifar10", images=70)
    files = {**{f"data_batch_{i}": 10 for i in range(1, 6)}, "test_batch": 20}
    made = made_cifar(tmp_path, monkeypatch, tv.CIFAR10, files, 10)
    data = load("cifar10", tmp_path)
    assert np.array_equal(data.images[10:20], made["data_batch_2"]["data"].reshape(10, 3, 32, 32))
    assert data.labels.tolist() == list(range(10)) * 7
    assert data.class_names == tuple(f"class {i}" for i in range(10))
    for name in ("batches.meta", "data_batch_3"):
        path = tmp_path / "cifar-10-batches-py" / name
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(DataError, match=rf"incomplete or damaged: {name}\. Remove the folder"):
            load("cifar10", tmp_path)


def test_cifar100_maps_fine_labels_to_superclasses(tmp_path, monkeypatch, facts):
    facts("cifar100", images=170)
    made_cifar(tmp_path, monkeypatch, tv.CIFAR100, {"train": 100, "test": 70}, 100)
    assert load("cifar100", tmp_path).labels.tolist() == [*CIFAR100_SUPERCLASS, *CIFAR100_SUPERCLASS[:70]]


def test_stl10_reads_the_binaries_and_keeps_the_unlabeled_apart(tmp_path, monkeypatch, facts):
    facts("stl10", images=30, unlabeled=5)
    rng, written, folder = np.random.default_rng(0), {}, tmp_path / "stl10_binary"
    folder.mkdir()
    for part, n in (("train", 20), ("test", 10), ("unlabeled", 5)):
        # the format is column by column: each image (3, width, height)
        written[part] = rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)
        (folder / f"{part}_X.bin").write_bytes(written[part].tobytes())
        (folder / f"{part}_y.bin").write_bytes((np.arange(n) % 10 + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)) + "\n")
    (folder / "fold_indices.txt").write_text("")
    teach(monkeypatch, tv.STL10, folder)
    data = load("stl10", tmp_path)
    assert np.array_equal(data.images[:20], written["train"].transpose(0, 1, 3, 2))
    assert np.array_equal(data.unlabeled, written["unlabeled"].transpose(0, 1, 3, 2))
    assert data.labels.tolist() == [*range(10)] * 3


def test_imagenet10_takes_its_synsets_and_no_others_and_names_those_that_lack_images(tmp_path, facts):
    facts("imagenet10", images=20, reader=readers.synsets("imagenet-10", IMAGENET10, 2))
    made_classes(tmp_path / "imagenet-10", [*IMAGENET10, "n00000001"], 2)
    data = load("imagenet10", tmp_path)
    assert data.class_names[0] == "king penguin"
    assert data.labels.tolist() == [i for i in range(10) for _ in "ab"]
    assert data.images.sizes[:4].tolist() == [[6, 8], [7, 8], [6, 9], [7, 9]]  # height, width
    shutil.rmtree(tmp_path / "packed")
    shutil.rmtree(tmp_path / "imagenet-10/n02056570")
    (tmp_path / "imagenet-10/n02128757/n02128757_0.png").unlink()
    with pytest.raises(DataError, match=r"n02056570 \(king penguin\): missing, n02128757 \(snow leopard\): 1\. Put 10"):
        load("imagenet10", tmp_path)


@pytest.mark.parametrize("layout", ["train/{}/images", "train/{}", "{}"])
def test_tiny_imagenet_is_read_in_the_layouts_that_are_about(tmp_path, layout):
    folder, places = tmp_path / "tiny-imagenet-200", {wnid: layout.format(wnid) for wnid in ("n02", "n01", "n03")}
    for place in (*places.values(), "val/n01", "val/n02", "test/images"):
        made_files(folder / place, 2)
    (folder / "n_notes.txt").touch()
    found = readers.tiny_imagenet(tmp_path, classes=3, per_class=2)
    assert found.class_names == ["n01", "n02", "n03"]
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert {path.parent for path in found.paths} == {folder / place for place in places.values()}
    assert found.paths == sorted(found.paths)


def test_what_tiny_imagenet_lacks_is_named_in_a_line(tmp_path):
    def says(text, classes):
        with pytest.raises(DataError, match=rf"{text}\. Remove .*tiny-imagenet-200, and it is fetched again\.$"):
            readers.tiny_imagenet(tmp_path, classes, 2)

    says("Of 200 class folders with 2 images each, .*/tiny-imagenet-200 holds none", 200)
    for number, n in enumerate([2, 3, 0, 1, 0, 0]):
        made_files(tmp_path / f"tiny-imagenet-200/train/n0{number}", n)
    for classes in (5, 6, 7):
        says(f"Of {classes} .* holds 1; n01: 3; n02: none; n03: 1; 2 more", classes)
    shutil.rmtree(tmp_path / "tiny-imagenet-200/train")
    made_files(tmp_path / "tiny-imagenet-200/train/n00", 2)
    for classes in (0, 2):
        says("train holds 1", classes)


@has("samples/sample-tiny-imagenet-200")
def test_a_sample_of_tiny_imagenet_is_read_and_incomplete(tmp_path):
    (tmp_path / "tiny-imagenet-200").symlink_to(Path(DATA, "samples/sample-tiny-imagenet-200"))
    found = readers.tiny_imagenet(tmp_path, per_class=5)
    assert (len(found.paths), len(found.class_names)) == (1000, 200)
    with pytest.raises(DataError, match=r"holds none; n01443537: 5; .*; 197 more"):
        readers.tiny_imagenet(tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("digits", ""),
        pytest.param("cifar10", "cifar-10-batches-py", marks=has("cifar-10-batches-py")),
        pytest.param("cifar100", "cifar-100-python", marks=has("cifar-100-python")),
    ],
)
def test_images_packed_today_have_the_hash_that_the_records_hold(name, folder, tmp_path):
    if folder:
        (tmp_path / folder).symlink_to(Path(DATA, folder))
    records = [json.loads(path.read_text()) for path in (CODE / "results/runs").glob(f"*/{name}/*.json")]
    assert {record["data_sha256"] for record in records} == {load(name, tmp_path).sha256}


@has("cifar-100-python")
def test_cifar100_superclasses_are_the_coarse_labels_in_the_files():
    path = Path(DATA, "cifar-100-python/train")
    assert md5(path) == tv.CIFAR100.train_list[0][1]  # so it may be unpickled
    found = pickle.loads(path.read_bytes(), encoding="latin1")
    assert np.array_equal(CIFAR100_SUPERCLASS[found["fine_labels"]], found["coarse_labels"])
