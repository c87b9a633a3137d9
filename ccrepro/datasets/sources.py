"""What lies below the data root for each data set: files to decode, or arrays that the set's own format gives.

Letters: N images, C channels, S side of the packed square.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from ccrepro.datasets.decode import SUFFIXES
from ccrepro.errors import DataError

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
# ILSVRC-2012 synsets of the two subsets, as listed with the authors' code; 1,300 training images each.
IMAGENET10 = {
    "n02056570": "king penguin", "n02085936": "Maltese dog", "n02128757": "snow leopard", "n02690373": "airliner",
    "n02692877": "airship", "n03095699": "container ship", "n04254680": "soccer ball", "n04285008": "sports car",
    "n04467665": "trailer truck", "n07747607": "orange",
}
IMAGENET_DOGS = {
    "n02085936": "Maltese dog", "n02086646": "Blenheim spaniel", "n02088238": "basset",
    "n02091467": "Norwegian elkhound", "n02097130": "giant schnauzer", "n02099601": "golden retriever",
    "n02101388": "Brittany spaniel", "n02101556": "clumber", "n02102177": "Welsh springer spaniel",
    "n02105056": "groenendael", "n02105412": "kelpie", "n02105855": "Shetland sheepdog", "n02107142": "Doberman",
    "n02110958": "pug", "n02112137": "chow",
}
# The free stand-ins by fast.ai: other synsets, so other data sets.
IMAGENETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}
IMAGEWOOF = {
    "n02086240": "Shih-Tzu", "n02087394": "Rhodesian ridgeback", "n02088364": "beagle", "n02089973": "English foxhound",
    "n02093754": "Border terrier", "n02096294": "Australian terrier", "n02099601": "golden retriever",
    "n02105641": "Old English sheepdog", "n02111889": "Samoyed", "n02115641": "dingo",
}
# fmt: on


class Arrays(NamedTuple):
    """Decoded images: uint8 (N, C, S, S), labels int64 (N,), and unlabeled images or None."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: Sequence[str]
    unlabeled: np.ndarray | None = None


class Bundle(NamedTuple):
    """Files of a format of their own, and what reads all of them at once."""

    paths: list[Path]
    read: Callable[[], Arrays]


class Files(NamedTuple):
    """Image files to be decoded, their labels (or None) and the side of the square they are packed to."""

    paths: list[Path]
    labels: np.ndarray | None
    class_names: Sequence[str]
    side: int


def digits() -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8×8; their 17 grey values 0 … 16 are spread over 0 … 255."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Arrays(images, labels.astype(np.int64), [str(d) for d in range(10)])


def cifar10(root: Path) -> Bundle:
    """Training and test part as one, since the paper clusters both."""

    def read() -> Arrays:
        parts = [_torchvision("CIFAR10", root, train=train) for train in (True, False)]
        return Arrays(*_joined([p.data for p in parts], [p.targets for p in parts]), parts[0].classes)

    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    return Bundle([root / "cifar-10-batches-py" / name for name in names], read)


def cifar100(root: Path) -> Bundle:
    """As CIFAR-10, with the 20 superclasses as labels, as everyone in this field does."""

    def read() -> Arrays:
        parts = [_torchvision("CIFAR100", root, train=train) for train in (True, False)]
        images, fine = _joined([p.data for p in parts], [p.targets for p in parts])
        return Arrays(images, CIFAR100_SUPERCLASS[fine], CIFAR100_SUPERCLASS_NAMES)

    return Bundle([root / "cifar-100-python" / name for name in ("train", "test", "meta")], read)


def stl10(root: Path) -> Bundle:
    """Training and test part as one, and the 100,000 unlabeled images."""

    def read() -> Arrays:
        train, test, rest = (_torchvision("STL10", root, split=split) for split in ("train", "test", "unlabeled"))
        images, labels = np.concatenate([train.data, test.data]), np.concatenate([train.labels, test.labels])
        return Arrays(images, labels.astype(np.int64), train.classes, rest.data)

    names = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt")
    return Bundle([root / "stl10_binary" / name for name in names], read)


def _torchvision(kind: str, root: Path, **split: object) -> Any:
    """torchvision's reader, which verifies each file by its MD5 first."""
    from torchvision import datasets  # late: a packed data set needs no torch to be read

    made = getattr(datasets, kind)
    try:
        return made(root, download=False, **split)
    except RuntimeError as error:
        place = root / made.base_folder
        what = f"{kind} is incomplete or damaged: {_differing(made, place)}"
        fix = f"Remove {made.base_folder}, and it is fetched again"
        raise DataError(what, str(place), "Every file must have its official MD5", fix) from error


def _differing(kind: Any, folder: Path) -> str:
    """The files of a torchvision data set that are absent or not the official ones."""
    official = [
        *kind.train_list,
        *kind.test_list,
        *([(kind.meta["filename"], kind.meta["md5"])] if hasattr(kind, "meta") else []),
    ]
    found = []
    for name, expected in official:
        path = folder / name
        md5 = hashlib.md5(path.read_bytes()).hexdigest() if path.exists() else "absent"
        if md5 != expected:
            found.append(f"{name} has MD5 {md5}, not {expected}" if path.exists() else f"{name} is absent")
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _joined(pixels: list[np.ndarray], labels: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S, C) arrays → one uint8 (N, C, S, S), and one int64 (N,)."""
    images = np.ascontiguousarray(np.concatenate(pixels).transpose(0, 3, 1, 2))
    return images, np.concatenate(labels).astype(np.int64)


def synsets(folder: str, names: dict[str, str], side: int, per_class: int = 0) -> Callable[[Path], Files]:
    """Class folders named by synset, below ``folder``, or below its ``train``."""

    def found(root: Path) -> Files:
        base = root / folder / "train" if (root / folder / "train").is_dir() else root / folder
        paths = {synset: image_files(base / synset) for synset in names}
        wrong = {s: len(p) for s, p in paths.items() if not p or (per_class and len(p) != per_class)}
        if wrong:
            counts = ", ".join(
                f"{s} ({names[s]}): {n}" if n else f"{s} ({names[s]}): missing" for s, n in wrong.items()
            )
            each = f"{per_class:,} images in each" if per_class else "images in each"
            fix = f"Put the class folders into {base}"
            raise DataError(f"wrong class folders: {counts}", str(base), f"{len(names)} folders, {each}", fix)
        return _listed(paths, list(names.values()), side)

    return found


def tiny_imagenet(root: Path) -> Files:
    """The training part: 200 class folders of 500 images, ``train/<wnid>/images``."""
    base = root / "tiny-imagenet-200" / "train"
    paths = {p.name: image_files(p / "images") for p in sorted(base.glob("n*"))}
    if not paths:
        fix = "Unpack tiny-imagenet-200.zip there"
        raise DataError("Tiny-ImageNet is not there", str(base), "200 class folders of 500 images", fix)
    return _listed(paths, list(paths), 64)


def folder(path: Path, side: int = 256) -> Files:
    """Any folder of pictures: labels from its sub-folders where these hold some, otherwise none.

    Raises `DataError` for a path that is no folder, a folder without pictures, and an empty
    sub-folder beside classes.
    """
    if not path.is_dir():
        raise DataError(f"no folder {path}", "data set", "Write folder:PATH with a folder of pictures", "Correct it")
    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    classes = {p.name: image_files(p, deep=True) for p in folders}
    classes = {name: paths for name, paths in classes.items() if paths}
    if classes:
        empty = [p.name for p in folders if not any(p.iterdir())]
        if empty:
            what, allowed = f"empty class folders: {', '.join(empty)}", "A sub-folder is a class and must hold pictures"
            raise DataError(what, str(path), allowed, "Add some, or remove it")
        return _listed(classes, list(classes), side)
    paths = image_files(path)
    if not paths:
        raise DataError("no pictures", str(path), f"Files that end in {', '.join(SUFFIXES)}", "Choose another folder")
    return Files(paths, None, [], side)


def image_files(path: Path, deep: bool = False) -> list[Path]:
    """The picture files of a folder, by name; with ``deep`` those of its sub-folders too."""
    return [p for p in visible_files(path, deep) if is_image(p)]


def is_image(path: Path) -> bool:
    """Whether it is a file, or a link to one, with an ending that is read."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def visible_files(path: Path, deep: bool) -> list[Path]:
    """The files of a folder, by name, hidden ones left out; with ``deep`` those of its sub-folders, and of folders that
    are linked into it, once each."""
    found, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        place = os.path.realpath(folder)
        visible = [name for name in folders if deep and place not in seen and not name.startswith(".")]
        folders[:] = sorted(visible, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        found += [Path(folder, name) for name in names if place not in seen and not name.startswith(".")]
        seen.add(place)
    return sorted(found)


def _listed(paths: dict[str, list[Path]], class_names: list[str], side: int) -> Files:
    labels = np.repeat(np.arange(len(paths)), [len(p) for p in paths.values()])
    return Files([path for some in paths.values() for path in some], labels.astype(np.int64), class_names, side)


SOURCES: dict[str, Callable[[Path], Bundle | Files]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "stl10": stl10,
    "imagenet10": synsets("imagenet-10", IMAGENET10, 256, per_class=1300),
    "imagenet-dogs": synsets("imagenet-dogs", IMAGENET_DOGS, 256, per_class=1300),
    "tiny-imagenet": tiny_imagenet,
    "imagenette": synsets("imagenette2", IMAGENETTE, 256),
    "imagewoof": synsets("imagewoof2", IMAGEWOOF, 256),
}
