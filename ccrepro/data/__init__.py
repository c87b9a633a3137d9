"""Name of a data set → `ImageSet`: all its images as one uint8 array, with labels for scoring only."""

import dataclasses
import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ccrepro.data import cache
from ccrepro.data.readers import Bundle, Files, digits
from ccrepro.data.registry import DATASETS
from ccrepro.errors import DataError, unknown
from ccrepro.runtime import storage

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageSet:
    """A data set of N images of C channels (1 or 3) in squares of S pixels.

    images: uint8 (N, C, S, S), mapped from disk where the set is packed. sizes: int64 (N, 2), each image's own height
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
    return Path(root or os.environ.get("CCREPRO_DATA") or storage.ROOT / "data")


def load(name: str, root: str | Path | None = None) -> ImageSet:
    """The data set, fetched and packed on first use, with its counts of images and classes checked against Table 1.

    Raises `ConfigError` for an unknown name and `DataError` for data that is absent, damaged or incomplete.
    """
    if name == "digits":
        images, labels, class_names, _ = digits()
        digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
        return ImageSet(name, images, np.full((len(images), 2), images.shape[2:]), labels, tuple(class_names), digest)
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    root = data_root(root)
    packed = _packed(name, root)
    if packed is None:  # of several processes that come for it at once, one makes it and the others wait
        place = root / "packed" / name
        with storage.lock(place.with_name(f"{place.name}.lock"), wait=True):
            packed = _packed(name, root) or cache.write(place, _source(name, root) or _fetched(name, root))
    data = ImageSet(name, *packed)
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
    if name == "digits" or (root / "packed" / name).exists() or _source(name, root):
        return sample(load(name, root), records[0]["config"].get("sample", 0), records[0]["seed"]).images
    return None


def _source(name: str, root: Path) -> Bundle | Files | None:
    """What a data set is packed from, where all of it is there."""
    try:
        source = DATASETS[name].reader(root)
    except DataError:
        return None
    return source if cache.fingerprint(source) else None


def _fetched(name: str, root: Path) -> Bundle | Files:
    if DATASETS[name].archive:
        from ccrepro.data import download  # late: needs the network's libraries

        download.fetch(name, root)
    return DATASETS[name].reader(root)


def _packed(name: str, root: Path) -> cache.Packed | None:
    """The packed folder, where it is sound and its source, if that is still there, unchanged."""
    source = _source(name, root)
    return cache.read(root / "packed" / name, cache.fingerprint(source) if source else None)


def _check_counts(data: ImageSet, root: Path) -> None:
    facts = DATASETS[data.name]
    found = (len(data.images), len(data.class_names), 0 if data.unlabeled is None else len(data.unlabeled))
    expected = (facts.images, facts.classes, facts.unlabeled)
    if found != expected:
        counts = "{:,} images, {} classes, {:,} unlabeled images"
        what = f"{facts.title} in {root} has {counts.format(*found)}, not {counts.format(*expected)}"
        raise DataError(f"{what}. Remove its folder and fetch the data again.")


def catalog(root: str | Path | None = None) -> pd.DataFrame:
    """The data sets, one row each, with their state below the data root."""
    rows = [
        {
            "name": name,
            "images": f"{facts.images:,}" + (f" + {facts.unlabeled:,}" if facts.unlabeled else ""),
            "classes": facts.classes,
            "split": facts.split,
            "folder": facts.folder or "–",
            "origin": facts.origin,
            "terms": facts.terms,
            "state": _state(name, data_root(root)),
        }
        for name, facts in DATASETS.items()
    ]
    return pd.DataFrame(rows)


def command(
    action: Literal["list", "get"] = "list", name: str = "", /, *, imagenet: str = "", data_dir: str = ""
) -> None:
    """List the data sets, or get one: fetch, verify and pack it for all runs.

    Args:
        action: What to do.
        name: The data set to get.
        imagenet: ILSVRC-2012's training folder, to build ImageNet-10 or ImageNet-Dogs from.
        data_dir: Folder of data sets; else $CCREPRO_DATA, else data/.
    """
    if action == "list":
        print(catalog(data_dir).to_markdown(index=False))
        return
    if imagenet:
        from ccrepro.data import download  # late: needs the network's libraries

        download.from_imagenet(name, Path(imagenet), data_root(data_dir))
    data = load(name, data_dir)
    shape = data.images.shape
    print(f"{shape[0]:,} images of {shape[1:]}, {len(data.class_names)} classes: {data.sha256}")


def _state(name: str, root: Path) -> str:
    if name == "digits":
        return "ships with scikit-learn"
    if ((root / "packed" / name) / "index.json").exists():
        packed = _packed(name, root)
        return f"packed, verified: {len(packed.images):,} images" if packed else "packed, but stale or damaged"
    source = _source(name, root)
    return f"present, not packed: {len(source.paths):,} files" if source else "absent"
