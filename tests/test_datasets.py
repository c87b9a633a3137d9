import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ccrepro import datasets
from ccrepro.errors import ConfigError, DataError

DATA = os.environ.get("CCREPRO_DATA", "")


def has(folder):
    return pytest.mark.skipif(not Path(DATA, folder).is_dir() or not DATA, reason=f"needs $CCREPRO_DATA/{folder}")


def test_digits_are_scikit_learns(digits):
    pixels, labels = load_digits(return_X_y=True)
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == torch.uint8
    assert np.array_equal(np.round(digits.images.flatten(1).numpy() * (16 / 255)), pixels)
    assert np.array_equal(digits.labels, labels)
    assert digits.unlabeled is None
    assert digits.sha256 == "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"


def test_same_data_has_the_same_hash(digits):
    assert datasets.load("digits").sha256 == digits.sha256


def test_superclasses_are_20_of_5():
    assert np.bincount(datasets.CIFAR100_SUPERCLASS).tolist() == [5] * 20
    assert len(datasets.CIFAR100_SUPERCLASS_NAMES) == 20


def test_unknown_name():
    with pytest.raises(ConfigError, match="unknown data set 'mnist'"):
        datasets.load("mnist")


def test_wrong_count_is_refused(monkeypatch):
    whole = datasets.LOADERS["digits"]

    def short(root):
        images, labels, names, unlabeled = whole(root)
        return images[:-1], labels[:-1], names, unlabeled

    monkeypatch.setitem(datasets.LOADERS, "digits", short)
    with pytest.raises(DataError, match=r"1796 images.*Expected 1797 images, 10 classes"):
        datasets.load("digits")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_data_that_cannot_be_had_says_where_to_put_it(name, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DataError) as caught:
        datasets.load(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), "no network", "https://", "MD5", "CCREPRO_DATA"):
        assert part in message.replace("http://", "https://")
    assert caught.value.exit_code == 3


@has("cifar-10-batches-py")
def test_cifar10_is_train_and_test_in_order():
    data = datasets.load("cifar10", DATA)
    assert data.images.shape == (60_000, 3, 32, 32)
    assert np.bincount(data.labels).tolist() == [6000] * 10
    assert data.class_names[data.labels[0]] == "frog"  # the first training image
    assert data.class_names[data.labels[50_000]] == "cat"  # the first test image
    assert data.images[0, :, 0, 0].tolist() == [59, 62, 63]


@has("cifar-100-python")
def test_cifar100_superclasses_are_the_coarse_labels_in_the_files():
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import check_integrity

    data = datasets.load("cifar100", DATA)
    assert np.bincount(data.labels).tolist() == [3000] * 20
    path = Path(DATA, "cifar-100-python/train")
    assert check_integrity(path, CIFAR100.train_list[0][1])
    import pickle

    with path.open("rb") as file:
        coarse = pickle.load(file, encoding="latin1")["coarse_labels"]
    assert np.array_equal(data.labels[:50_000], coarse)
