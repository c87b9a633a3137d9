"""Name of a data set → `ImageSet`: all its images as one uint8 array, with labels for scoring only."""

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ccrepro.config import DATASETS
from ccrepro.datasets import pack
from ccrepro.datasets.sources import SOURCES, Bundle, Files, digits, folder
from ccrepro.errors import DataError, unknown

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageSet:
    """A data set of N images of C channels (1 or 3) in squares of S pixels.

    images: uint8 (N, C, S, S), mapped from disk where the set is packed. sizes: int64 (N, 2), each picture's own height
    and width, before it was squeezed to a square. labels: int64 (N,), never read while training; None for a folder
    without classes. class_names: one per label value. sha256: of all of these. unlabeled: uint8 (M, C, S, S), or None.
    """

    name: str
    images: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    sha256: str
    unlabeled: np.ndarray | None = None


def as_tensor(images: np.ndarray) -> "torch.Tensor":
    """The images as a torch tensor on the same memory, not to be written to."""
    import torch  # late: data sets can be listed and packed without it

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(images)


def data_root(root: str | Path | None = None) -> Path:
    """The folder of data sets: the one given, or ``$CCREPRO_DATA``, or ``data/`` in the current folder."""
    return Path(root or os.environ.get("CCREPRO_DATA") or "data")


def load(name: str, root: str | Path | None = None, skip_bad: bool = False) -> ImageSet:
    """The data set, packed on first use, with its number of images and classes checked against Table 1.

    ``name`` is one of the data sets' names, or ``folder:PATH``. ``skip_bad`` leaves out pictures that cannot be read.
    Raises `ConfigError` for an unknown name and `DataError` for data that is absent, damaged or incomplete.
    """
    if name == "digits":
        return _in_memory(name)
    root = data_root(root)
    if name.startswith("folder:"):
        path = Path(name.removeprefix("folder:")).resolve()
        place = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        return ImageSet(name, *_packed(root / "packed" / f"folder-{place}", lambda: folder(path), skip_bad))
    if name not in SOURCES:
        raise unknown("data set", name, "loading", [*DATASETS, "folder:PATH"])
    data = ImageSet(name, *_packed(root / "packed" / name, lambda: SOURCES[name](root), skip_bad))
    if not skip_bad:
        _check_counts(data, root)
    return data


def _packed(place: Path, source: Callable[[], Bundle | Files], skip_bad: bool) -> pack.Packed:
    """The packed folder where it is sound and its source unchanged (or gone); otherwise made anew."""
    try:
        found = source()
    except DataError:
        packed = pack.read(place)
        if packed is None:
            raise
        return packed
    return pack.read(place, pack.fingerprint(found)) or pack.write(place, found, skip_bad)


def _in_memory(name: str) -> ImageSet:
    images, labels, class_names, _ = digits()
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    sizes = np.broadcast_to(np.array(images.shape[2:]), (len(images), 2))
    return ImageSet(name, images, sizes, labels, tuple(class_names), digest)


def _check_counts(data: ImageSet, root: Path) -> None:
    facts = DATASETS[data.name]
    found = (len(data.images), len(data.class_names), 0 if data.unlabeled is None else len(data.unlabeled))
    if found != facts[1:]:
        counts = "{} images, {} classes, {} unlabeled images"
        what, allowed = f"{facts.title} has " + counts.format(*found), "Expected " + counts.format(*facts[1:])
        raise DataError(what, str(root), allowed, "Remove its folder and fetch the data again")
