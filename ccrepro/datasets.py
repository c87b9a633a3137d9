"""Name of a data set → `ImageSet`: all of its images as one uint8 tensor, with labels for scoring only."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision import datasets as tv

from ccrepro.config import DATASETS
from ccrepro.errors import DataError, unknown

# Superclass of each of CIFAR-100's 100 classes, indexed by fine label: the standard coarse labels.
# fmt: off
CIFAR100_SUPERCLASS = np.array([
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1,
    10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12,
    12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0,
    17, 8, 14, 13,
])
CIFAR100_SUPERCLASS_NAMES = [
    "aquatic mammals", "fish", "flowers", "food containers", "fruit and vegetables", "household electrical devices",
    "household furniture", "insects", "large carnivores", "large man-made outdoor things",
    "large natural outdoor scenes", "large omnivores and herbivores", "medium-sized mammals",
    "non-insect invertebrates", "people", "reptiles", "small mammals", "trees", "vehicles 1", "vehicles 2",
]
# fmt: on


@dataclass(frozen=True)
class ImageSet:
    """A data set in memory. N images of C channels (1 or 3), H by W pixels.

    images: uint8 (N, C, H, W). labels: int64 (N,), never read while training. class_names: one per label value.
    sha256: of images and labels together. unlabeled: uint8 (M, C, H, W), or None.
    """

    name: str
    images: torch.Tensor
    labels: np.ndarray
    class_names: tuple[str, ...]
    sha256: str
    unlabeled: torch.Tensor | None = None


def load(name: str, root: str | Path | None = None) -> ImageSet:
    """The data set, with its number of images and classes checked against Table 1.

    ``root`` is the folder of downloaded data; by default ``$CCREPRO_DATA``, or ``data/`` in the current folder.
    Raises `ConfigError` for a name without a loader and `DataError` for data that is absent, damaged or incomplete.
    """
    if name not in LOADERS:
        raise unknown("data set", name, "loading", LOADERS)
    root = Path(root or os.environ.get("CCREPRO_DATA") or "data")
    images, labels, class_names, unlabeled = LOADERS[name](root)
    facts = DATASETS[name]
    found = (len(images), len(np.unique(labels)), 0 if unlabeled is None else len(unlabeled))
    if found != facts[1:]:
        counts = "{} images, {} classes, {} unlabeled images"
        what, allowed = f"{facts.title} has " + counts.format(*found), "Expected " + counts.format(*facts[1:])
        raise DataError(what, str(root), allowed, "Remove the folder and fetch the data again")
    digest = hashlib.sha256(images.numpy().tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    return ImageSet(name, images, labels, tuple(class_names), digest, unlabeled)


Loaded = tuple[torch.Tensor, np.ndarray, list[str], torch.Tensor | None]


def _digits(root: Path) -> Loaded:
    """scikit-learn's 1,797 handwritten digits, 8×8; its 17 grey values 0 … 16 are spread over 0 … 255."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(np.round(pixels * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    return images, labels.astype(np.int64), [str(d) for d in range(10)], None


def _cifar10(root: Path) -> Loaded:
    parts = [_torchvision(tv.CIFAR10, root, train=train) for train in (True, False)]
    images, labels = _joined([p.data for p in parts], [p.targets for p in parts])
    return images, labels, parts[0].classes, None


def _cifar100(root: Path) -> Loaded:
    """With the 20 superclasses as labels, as everyone in this field does."""
    parts = [_torchvision(tv.CIFAR100, root, train=train) for train in (True, False)]
    images, fine = _joined([p.data for p in parts], [p.targets for p in parts])
    return images, CIFAR100_SUPERCLASS[fine], CIFAR100_SUPERCLASS_NAMES, None


def _stl10(root: Path) -> Loaded:
    train, test, rest = (_torchvision(tv.STL10, root, split=split) for split in ("train", "test", "unlabeled"))
    images = torch.from_numpy(np.concatenate([train.data, test.data]))
    labels = np.concatenate([train.labels, test.labels]).astype(np.int64)
    return images, labels, train.classes, torch.from_numpy(rest.data)


def _torchvision(kind: type, root: Path, **split: object) -> tv.VisionDataset:
    """torchvision's data set, downloaded with torchvision's own checksums where it is not there yet."""
    try:
        try:
            return kind(root, download=False, **split)
        except RuntimeError:
            return kind(root, download=True, **split)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        where, reason = getattr(kind, "url", "its host"), " ".join(str(error).split())
        fix = f"Put {getattr(kind, 'filename', 'its archive')} (MD5 {getattr(kind, 'tgz_md5', '?')}) there"
        raise DataError(
            f"{kind.__name__} is not in {root} and could not be fetched: {reason}",
            str(where),
            f"Set CCREPRO_DATA to a folder that holds {getattr(kind, 'base_folder', kind.__name__)}",
            fix,
        ) from error


def _joined(pixels: list[np.ndarray], labels: list[list[int]]) -> tuple[torch.Tensor, np.ndarray]:
    """Training and test part as one, since the paper clusters both: (N, H, W, C) arrays → uint8 (N, C, H, W)."""
    images = torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2).contiguous()
    return images, np.concatenate(labels).astype(np.int64)


LOADERS: dict[str, Callable[[Path], Loaded]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "stl10": _stl10,
}
