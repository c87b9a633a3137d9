"""Name of a data set → `ImageSet`: all its images as uint8 pixels, with labels for scoring only."""

import dataclasses
import hashlib
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ccrepro.data import cache
from ccrepro.data.cache import ImageSet
from ccrepro.data.readers import digits
from ccrepro.data.registry import DATASETS
from ccrepro.errors import DataError, unknown
from ccrepro.runtime import storage
from ccrepro.runtime.ragged import Ragged, channels_of

if TYPE_CHECKING:
    import torch


def as_tensor(images: np.ndarray | Ragged) -> "torch.Tensor | Ragged":
    """The images as a torch tensor on the same memory, which must not be written to; `Ragged` ones with such pixels."""
    import torch  # late: data sets can be listed and packed without it

    if isinstance(images, Ragged):
        return Ragged(as_tensor(images.pixels), images.starts, images.sizes, images.channels)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(images)


def data_root(root: str | Path | None = None) -> Path:
    """The folder of data sets: the one given, or ``$CCREPRO_DATA``, or ``data/`` (see `storage.place`)."""
    return storage.place(root or os.environ.get("CCREPRO_DATA"), "data")


def load(name: str, root: str | Path | None = None) -> ImageSet:
    """The data set, fetched and packed on first use, its counts of images and classes checked against Table 1.

    Raises `ConfigError` for an unknown name, and `DataError` for data that are absent, damaged or incomplete.
    """
    if name == "digits":
        images, labels, class_names, _ = digits()
        digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
        return ImageSet(name, images, labels, tuple(class_names), digest)
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    root, facts = data_root(root), DATASETS[name]
    place = root / "packed" / name
    data = cache.read(place, _source(name, root))
    if data is None:  # if several processes come here at once, one packs and the others wait for it
        with storage.lock(place, wait=True):
            if facts.archive and not (root / facts.folder).exists():  # what is there is never replaced
                from ccrepro.data import download  # late: imports the network's libraries

                download.fetch(name, root)
            data = cache.read(place, _source(name, root)) or cache.write(place, facts.reader(root))
    found = (len(data.images), len(data.class_names), 0 if data.unlabeled is None else len(data.unlabeled))
    expected = (facts.images, facts.classes, facts.unlabeled)
    if found != expected:
        counts = "{:,} images, {} classes, {:,} unlabeled images"
        what = f"{facts.title} in {root} has {counts.format(*found)}, not {counts.format(*expected)}"
        raise DataError(f"{what}. Remove its folder and fetch the data again.")
    return data


def sample(data: ImageSet, n: int, seed: int) -> ImageSet:
    """At most ``n`` of the images, drawn at random and kept in order; 0 takes all. Equal seeds draw the same."""
    return _rows(data, _order(data, seed)[:n]) if 0 < n < len(data.images) else data


def unseen(data: ImageSet, n: int, seed: int) -> ImageSet | None:
    """The images that `sample` leaves out, in order; None where it takes all."""
    return _rows(data, _order(data, seed)[n:]) if 0 < n < len(data.images) else None


def _order(data: ImageSet, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(data.images))


def _rows(data: ImageSet, rows: np.ndarray) -> ImageSet:
    rows = np.sort(rows)
    labels = None if data.labels is None else data.labels[rows]
    return dataclasses.replace(data, images=data.images[rows], labels=labels)


def channel_statistics(images: np.ndarray | Ragged, at_once: int = 2**20) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel's pixels in [0, 1]: uint8 (N, C, H, W) → (C,), (C,), exact for any N.

    The deviation of a channel in which all pixels are equal is 1: there is nothing to scale. at_once: pixels that are
    counted at a time; numpy makes 8 bytes of each. `Ragged` images are counted one by one.
    """
    counts = np.zeros((channels_of(images), 256), dtype=np.int64)
    if isinstance(images, Ragged):
        parts = (image[None] for image in images)
    else:
        parts = np.array_split(images, math.ceil(len(images) * math.prod(images.shape[2:]) / at_once))
    for part in parts:
        counts += [np.bincount(part[:, channel].ravel(), minlength=256) for channel in range(len(counts))]
    share, value = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean, constant = share @ value, share.max(1) == 1
    return mean, np.sqrt(np.where(constant, 1, share @ value**2 - mean**2))


def at_hand(records: list[dict[str, Any]], root: str | Path | None = None) -> np.ndarray | Ragged | None:
    """The images of the first record's run, as in `ImageSet`; None without it, or if they are not here."""
    for record in records[:1]:
        if here(record["dataset"], root):
            return sample(load(record["dataset"], root), record["config"].get("sample", 0), record["seed"]).images
    return None


def here(name: str, root: str | Path | None = None) -> bool:
    """Whether a data set can be loaded without fetching it."""
    root = data_root(root)
    return name == "digits" or (root / "packed" / name).exists() or _source(name, root) is not None


def _source(name: str, root: Path) -> str | None:
    """The fingerprint of what a data set is packed from, if all of it is there."""
    try:
        return cache.fingerprint(DATASETS[name].reader(root))
    except DataError:
        return None


def catalog(root: str | Path | None = None) -> pd.DataFrame:
    """The data sets, one row each, with their state below the data root."""
    rows = []
    for name, facts in DATASETS.items():
        images = f"{facts.images:,}" + (f" + {facts.unlabeled:,}" if facts.unlabeled else "")
        about = (facts.classes, facts.split, facts.folder or "–", facts.origin, facts.terms)
        rows.append((name, images, *about, _state(name, data_root(root))))
    columns = ["name", "images", "classes", "split", "folder", "origin", "terms", "state"]
    return pd.DataFrame(rows, columns=columns)


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

        download.from_imagenet(name, storage.place(imagenet), data_root(data_dir))
    data = load(name, data_dir)
    print(f"{data}; {len(data.class_names)} classes; {data.sha256}")


def _state(name: str, root: Path) -> str:
    if name == "digits":
        return DATASETS[name].origin
    source = _source(name, root)
    if packed := cache.read(root / "packed" / name, source):
        return f"packed, verified: {len(packed.images):,} images"
    return "present, not packed" if source else "absent"
