"""Name of a data set → `ImageSet`: all its images as one uint8 array, with labels for scoring only."""

import dataclasses
import functools
import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccrepro import files
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
    """The folder of data sets: the one given, or ``$CCREPRO_DATA``, or ``data/`` in the clone."""
    return Path(root or os.environ.get("CCREPRO_DATA") or files.ROOT / "data")


def load(name: str, root: str | Path | None = None, skip_bad: bool = False) -> ImageSet:
    """The data set, fetched and packed on first use, with its counts of images and classes checked against Table 1.

    ``name`` is one of the data sets' names, or ``folder:PATH``. ``skip_bad`` leaves out pictures that cannot be read.
    Raises `ConfigError` for an unknown name and `DataError` for data that is absent, damaged or incomplete.
    """
    if name == "digits":
        return _in_memory(name)
    root = data_root(root)
    if name.startswith("folder:"):
        path = Path(name.removeprefix("folder:")).resolve()
        find = functools.partial(folder, path)
        place = root / "packed" / f"folder-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
        return ImageSet(name, *_packed(place, find, find, skip_bad))
    if name not in SOURCES:
        raise unknown("data set", name, "loading", [*DATASETS, "folder:PATH"])
    find, fetch = functools.partial(find_source, name, root), functools.partial(_fetched, name, root)
    data = ImageSet(name, *_packed(root / "packed" / name, find, fetch, skip_bad))
    if not skip_bad:
        _check_counts(data, root)
    return data


def sample(data: ImageSet, n: int, seed: int) -> ImageSet:
    """At most ``n`` of the images, drawn at random, in their order; 0 takes all. Equal seeds draw the same."""
    if not 0 < n < len(data.images):
        return data
    rows = np.sort(np.random.default_rng(seed).permutation(len(data.images))[:n])
    labels = None if data.labels is None else data.labels[rows]
    return dataclasses.replace(data, images=data.images[rows], sizes=data.sizes[rows], labels=labels)


def at_hand(records: list[dict[str, Any]], root: str | Path | None = None) -> np.ndarray | None:
    """The images that the first record speaks of, uint8 (N, C, S, S); None where they would have to be fetched."""
    if not records:
        return None
    name, root = records[0]["dataset"], data_root(root)
    if name != "digits" and not (root / "packed" / name).exists() and find_source(name, root) is None:
        return None
    return sample(load(name, root), records[0]["config"].get("sample", 0), records[0]["seed"]).images


def find_source(name: str, root: Path) -> Bundle | Files | None:
    """What a packed folder is made from, where all of it is below the data root."""
    try:
        source = SOURCES[name](root)
    except DataError:
        return None
    return source if pack.fingerprint(source) else None


def _fetched(name: str, root: Path) -> Bundle | Files:
    from ccrepro.datasets import fetch  # late: needs the network's libraries

    if name in fetch.ARCHIVES:
        fetch.fetch(name, root)
    return SOURCES[name](root)


def _packed(
    place: Path,
    find: Callable[[], Bundle | Files | None],
    fetch: Callable[[], Bundle | Files],
    skip_bad: bool,
) -> pack.Packed:
    """The packed folder where it is sound and its source, if that is still there, unchanged; otherwise made anew, by
    one process at a time: of several that come for it at once, one makes it and the others wait."""

    def ready() -> pack.Packed | None:
        source = find()
        return pack.read(place, pack.fingerprint(source) if source else None)

    packed = ready()
    if packed is None:
        _, lock = files.lock_one([place.with_name(f"{place.name}.lock")], lambda owners: _say(place, owners))
        with lock:
            packed = ready() or pack.write(place, find() or fetch(), skip_bad)
    return packed


def _say(place: Path, owners: list[str]) -> None:
    print(f"waiting for {place}: {owners[0]} is making it", flush=True)


def _in_memory(name: str) -> ImageSet:
    images, labels, class_names, _ = digits()
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    sizes = np.broadcast_to(np.array(images.shape[2:]), (len(images), 2))
    return ImageSet(name, images, sizes, labels, tuple(class_names), digest)


def _check_counts(data: ImageSet, root: Path) -> None:
    facts = DATASETS[data.name]
    found = (len(data.images), len(data.class_names), 0 if data.unlabeled is None else len(data.unlabeled))
    if found != facts[1:]:
        counts = "{:,} images, {} classes, {:,} unlabeled images"
        what = f"{facts.title} has {counts.format(*found)}; {_unequal(data)}"
        allowed = "Expected " + counts.format(*facts[1:])
        raise DataError(what, str(root), allowed, "Remove its folder and fetch the data again")


def _unequal(data: ImageSet) -> str:
    """The classes that lack pictures, or have too many: those unlike the most frequent count."""
    counts = np.bincount(data.labels, minlength=len(data.class_names))
    usual = np.bincount(counts).argmax()
    odd = [f"{data.class_names[k]}: {counts[k]}" for k in np.flatnonzero(counts != usual)]
    more = f" and {len(odd) - 10} more" if len(odd) > 10 else ""
    return f"{usual} in each class" + (f", but {', '.join(odd[:10])}{more}" if odd else "")
