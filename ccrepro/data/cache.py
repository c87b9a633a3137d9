"""Decode a data set once into a folder that is mapped into memory from then on.

A packed folder holds ``images.npy``, ``sizes.npy``, perhaps ``labels.npy`` and ``unlabeled.npy``, and, where bad files
were left out, ``rows.npy``: the places of the others among the source's paths. ``index.json``, written last, has the
class names, what the folder was made from, and the SHA-256 of each array. Images are never in memory all at once.
"""

import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from tqdm.std import tqdm

from ccrepro.data.images import BadImage, decode
from ccrepro.data.readers import Bundle, Files
from ccrepro.errors import DataError
from ccrepro.runtime.signals import end_with_parent
from ccrepro.runtime.storage import atomic_write

VERSION = 2
CHUNK = 256  # files that a process takes at once


@dataclass(frozen=True)
class ImageSet:
    """A data set of N images of C channels (1 or 3) in squares of S pixels.

    images: uint8 (N, C, S, S), mapped from disk if the set is packed. sizes: int64 (N, 2), the height and width of each
    image before it was squeezed to a square. labels: int64 (N,), never read in training; None for a folder without
    classes. class_names: one per label value. sha256: of all of these. unlabeled: uint8 (M, C, S, S), or None.
    """

    name: str
    images: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    sha256: str
    unlabeled: np.ndarray | None = None


def fingerprint(source: Bundle | Files) -> str | None:
    """SHA-256 of what a packed folder is made from: names, lengths and times of its files. None if one is missing."""
    about = [VERSION]
    if isinstance(source, Files):
        about += [source.side, list(source.class_names), None if source.labels is None else source.labels.tolist()]
    try:
        status = [(p.parent.name, p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in source.paths]
    except OSError:
        return None
    return hashlib.sha256(json.dumps([about, status]).encode()).hexdigest()


def read(folder: Path, made_from: str | None = None) -> ImageSet | None:
    """The packed folder, or None if it is absent, damaged, of another version or made from something else."""
    try:
        index = json.loads((folder / "index.json").read_text())
        if index["version"] != VERSION or made_from not in (None, index["made_from"]):
            return None
        if any(_sha256(folder / name) != digest for name, digest in index["sha256"].items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    arrays = {name: np.load(folder / name, mmap_mode="r") for name in index["sha256"]}
    parts = {name: arrays.get(f"{name}.npy") for name in ("images", "sizes", "labels", "unlabeled")}
    return ImageSet(folder.name, **parts, class_names=tuple(index["class_names"]), sha256=index["digest"])


def write(folder: Path, source: Bundle | Files, skip_bad: bool = False) -> ImageSet:
    """Pack a source. Raises `DataError` where files are bad, once all are listed, unless they are to be skipped."""
    scratch = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    if isinstance(source, Files):
        arrays, class_names = _decoded(scratch, source, skip_bad), source.class_names
    else:
        images, labels, class_names, unlabeled = source.read()
        sizes = np.full((len(images), 2), images.shape[2:])
        arrays = {"images": images, "unlabeled": unlabeled, "sizes": sizes, "labels": labels}
    for name, array in arrays.items():
        if array is not None:
            np.save(scratch / f"{name}.npy", array)
    hashes = {path.name: _sha256(path) for path in sorted(scratch.glob("*.npy"))}
    of_images = {name: hashes[name] for name in ("images.npy", "unlabeled.npy") if name in hashes}
    about = [of_images, *(None if arrays[name] is None else arrays[name].tolist() for name in ("labels", "sizes"))]
    index = {
        "version": VERSION,
        "made_from": fingerprint(source),
        "class_names": list(class_names),
        "sha256": hashes,
        "digest": hashlib.sha256(json.dumps(about).encode()).hexdigest(),  # of the data set; the records hold it
    }
    atomic_write(scratch / "index.json", json.dumps(index))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)
    return read(folder)


def _decoded(scratch: Path, source: Files, skip_bad: bool) -> dict[str, np.ndarray | None]:
    """Decode all files into ``images.npy``; returns the other arrays. Raises `DataError` as `write` does, and where all
    files are bad."""
    sizes = _decode_all(scratch / "images.npy", source)
    bad = [row for row, size in enumerate(sizes) if isinstance(size, str)]
    for row in bad:
        print(f"bad image: {source.paths[row]}: {sizes[row]}", file=sys.stderr)
    if not bad:
        return {"sizes": np.array(sizes), "labels": source.labels}
    if not skip_bad or len(bad) == len(sizes):
        what = f"{len(bad)} of {len(sizes)} images are bad, listed above"
        raise DataError(f"{what}. Remove them, or leave them out with --skip-bad.")
    print(f"{len(bad)} bad images are left out, {len(sizes) - len(bad)} remain", file=sys.stderr)
    rows = np.setdiff1d(np.arange(len(sizes)), bad)
    labels = None if source.labels is None else source.labels[rows]
    good = source._replace(paths=[source.paths[row] for row in rows], labels=labels)
    return {**_decoded(scratch, good, skip_bad=False), "rows": rows}


def _decode_all(images: Path, source: Files) -> list[tuple[int, int] | str]:
    """Decode all files on every core into one array; returns the (height, width) of each, or what is wrong with it.

    Raises `DataError` where the disk has too little space, and where a process is killed.
    """
    n, side, free = len(source.paths), source.side, shutil.disk_usage(images.parent).free
    if free < (needed := n * 3 * side**2):
        what = f"{images.parent.parent} has {free / 1e9:.1f} GB free, but the images take {needed / 1e9:.1f} GB"
        raise DataError(f"{what}. Free some space, or choose another --data-dir.")
    np.lib.format.open_memmap(images, "w+", np.uint8, (n, 3, side, side))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # ours, on a shared machine
    try:
        with ProcessPoolExecutor(cores, initializer=end_with_parent) as pool:
            sizes = pool.map(_decode_into, repeat(images), repeat(side), range(n), source.paths, chunksize=CHUNK)
            return list(tqdm(sizes, "packing", n, unit=" images", mininterval=1, disable=n <= CHUNK))
    except BrokenProcessPool:
        raise DataError("A process that decodes was killed, perhaps for want of memory. Run it again.") from None


def _decode_into(images: Path, side: int, row: int, path: Path) -> tuple[int, int] | str:
    """Decode a file into its row; returns its (height, width), or what is wrong with it."""
    try:
        np.load(images, mmap_mode="r+")[row], size = decode(path, side)
    except BadImage as error:
        return str(error)
    return size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
