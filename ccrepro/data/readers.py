"""Readers: what there is of a data set below the data root, as files to decode or as arrays.

Letters: N images, C channels, S side of the images.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccrepro.data.images import LONGEST, image_files
from ccrepro.data.synsets import CIFAR100_SUPERCLASS, CIFAR100_SUPERCLASS_NAMES
from ccrepro.errors import DataError
from ccrepro.runtime.storage import listing


class Arrays(NamedTuple):
    """Decoded images: uint8 (N, C, S, S), labels int64 (N,), and unlabeled images or None."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: Sequence[str]
    unlabeled: np.ndarray | None = None


class Bundle(NamedTuple):
    """Files in a format of their own, and a function that reads all of them."""

    paths: list[Path]
    read: Callable[[], Arrays]


class Files(NamedTuple):
    """Image files to decode, their labels (or None), and the length to which longer sides are reduced."""

    paths: list[Path]
    labels: np.ndarray | None
    class_names: Sequence[str]
    longest: int = LONGEST


def digits() -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8×8; their 17 grey values 0 … 16 are spread over 0 … 255."""
    from sklearn.datasets import load_digits  # late: takes a second, too long for a mistake on the command line

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Arrays(images, labels.astype(np.int64), [str(d) for d in range(10)])


def cifar10(root: Path) -> Bundle:
    """Training and test part as one: the paper clusters both."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    return Bundle([root / "cifar-10-batches-py" / name for name in names], lambda: _cifar("CIFAR10", root))


def cifar100(root: Path) -> Bundle:
    """Both parts as one, with the 20 superclasses as labels, as in the paper and those it compares with."""

    def read() -> Arrays:
        images, fine, _, _ = _cifar("CIFAR100", root)
        return Arrays(images, CIFAR100_SUPERCLASS[fine], CIFAR100_SUPERCLASS_NAMES)

    return Bundle([root / "cifar-100-python" / name for name in ("train", "test", "meta")], read)


def _cifar(kind: str, root: Path) -> Arrays:
    parts = [_torchvision(kind, root, train=train) for train in (True, False)]
    images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
    labels = np.concatenate([part.targets for part in parts])
    return Arrays(np.ascontiguousarray(images), labels.astype(np.int64), parts[0].classes)


def stl10(root: Path) -> Bundle:
    """Training and test part as one, and the 100,000 unlabeled images."""

    def read() -> Arrays:
        train, test, rest = (_torchvision("STL10", root, split=split) for split in ("train", "test", "unlabeled"))
        images, labels = np.concatenate([train.data, test.data]), np.concatenate([train.labels, test.labels])
        return Arrays(images, labels.astype(np.int64), train.classes, rest.data)

    names = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt")
    return Bundle([root / "stl10_binary" / name for name in names], read)


def _torchvision(kind: str, root: Path, **split: object) -> Any:
    """One part of a data set by torchvision's reader, which first verifies each file by its MD5."""
    from torchvision import datasets  # late: a packed data set is read without torch

    made = getattr(datasets, kind)
    try:
        return made(root, download=False, **split)
    except RuntimeError as error:
        place, official = root / made.base_folder, [*made.train_list, *made.test_list]
        bad = [name for name, md5 in official if not datasets.utils.check_integrity(place / name, md5)]
        what = f"{place} is incomplete or damaged: {', '.join(bad) or made.meta['filename']}"
        raise DataError(f"{what}. Remove the folder, and it is fetched again.") from error


def synsets(folder: str, names: dict[str, str], per_class: int = 0) -> Callable[[Path], Files]:
    """A reader of class folders that are named by synset, in ``folder`` or in its ``train``."""

    def found(root: Path) -> Files:
        base = root / folder / "train" if (root / folder / "train").is_dir() else root / folder
        paths = {synset: image_files(base / synset) for synset in names}
        wrong = {s: len(p) for s, p in paths.items() if not p or (per_class and len(p) != per_class)}
        if wrong:
            counts = ", ".join(f"{s} ({names[s]}): {n or 'missing'}" for s, n in wrong.items())
            each = f"{per_class:,} images" if per_class else "images"
            raise DataError(f"Wrong class folders in {base}: {counts}. Put {len(names)} there, with {each} in each.")
        return _listed(paths, list(names.values()))

    return found


def tiny_imagenet(root: Path, classes: int = 200, per_class: int = 500) -> Files:
    """The training part: ``train/<wnid>/images``, or flattened by others to ``train/<wnid>`` or ``<wnid>``."""
    folder = root / "tiny-imagenet-200"
    base = folder / "train" if (folder / "train").is_dir() else folder
    paths = {p.name: image_files(p / "images") or image_files(p) for p in listing(base, "n[0-9]*") if p.is_dir()}
    wrong = [f"{wnid}: {len(p) or 'none'}" for wnid, p in paths.items() if len(p) != per_class]
    if wrong or len(paths) != classes:
        holds = f"{base} holds {len(paths) - len(wrong) or 'none'}"
        few = "; ".join([holds, *wrong[:3]] + [f"{len(wrong) - 3} more"] * (len(wrong) > 3))
        what = f"Of {classes} class folders with {per_class} images each, {few}"
        raise DataError(f"{what}. Remove {folder}, and it is fetched again.")
    return _listed(paths, list(paths))


def _listed(paths: dict[str, list[Path]], class_names: list[str]) -> Files:
    labels = np.repeat(np.arange(len(paths)), [len(p) for p in paths.values()])
    return Files([path for some in paths.values() for path in some], labels.astype(np.int64), class_names)
