"""Decode a data set once into a folder that is mapped into memory from then on.

A packed folder holds ``images.npy`` (uint8), ``sizes.npy`` (every image's own height and width), perhaps ``labels.npy``
and ``unlabeled.npy``, ``rows.npy`` where bad files were left out (the others' places among the source's paths), and
``index.json``, written last: class names, what it was made from, and the SHA-256 of the arrays. It is used only
where all of that fits; otherwise it is made anew. No array is ever in memory as a whole: a packed set may be larger.
"""

import functools
import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.std import tqdm

from ccrepro.data.images import BadImage, decode
from ccrepro.data.readers import Bundle, Files
from ccrepro.errors import DataError
from ccrepro.runtime.signals import end_with_parent
from ccrepro.runtime.storage import atomic_write

VERSION = 2
_mapped = functools.cache(functools.partial(np.load, mmap_mode="r+"))  # opened once in each worker
CHUNK = 256  # files that a process takes at once


class Packed(NamedTuple):
    """A packed folder, mapped: images uint8 (N, C, S, S), sizes (N, 2) original height and width, labels or None."""

    images: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    sha256: str
    unlabeled: np.ndarray | None


def fingerprint(source: Bundle | Files) -> str | None:
    """SHA-256 of what a packed folder is made from: the files' names, lengths and times; None where one is missing."""
    about = [VERSION]
    if isinstance(source, Files):
        about += [source.side, list(source.class_names), None if source.labels is None else source.labels.tolist()]
    try:
        status = [(p.parent.name, p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in source.paths]
    except OSError:
        return None
    return hashlib.sha256(json.dumps([about, status]).encode()).hexdigest()


def read(folder: Path, made_from: str | None = None) -> Packed | None:
    """The packed folder, or None where it is absent, damaged, of another version or made from something else."""
    try:
        index = json.loads((folder / "index.json").read_text())
        if index["version"] != VERSION or made_from not in (None, index["made_from"]):
            return None
        if any(_sha256(folder / name) != digest for name, digest in index["sha256"].items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    arrays = {name: np.load(folder / name, mmap_mode="r") for name in index["sha256"]}
    images, sizes = arrays["images.npy"], arrays["sizes.npy"]
    labels, unlabeled = arrays.get("labels.npy"), arrays.get("unlabeled.npy")
    return Packed(images, sizes, labels, tuple(index["class_names"]), index["digest"], unlabeled)


def write(folder: Path, source: Bundle | Files, skip_bad: bool = False) -> Packed:
    """Pack a source. Raises `DataError` (exit code 3) that lists every bad file, unless they are to be skipped."""
    scratch = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    if isinstance(source, Files):
        labels, sizes = _good(scratch, source, _decoded(scratch, source), skip_bad)
        class_names, arrays = source.class_names, {}
    else:
        images, labels, class_names, unlabeled = source.read()
        arrays, sizes = {"images": images, "unlabeled": unlabeled}, np.full((len(images), 2), images.shape[2:])
    for name, array in {**arrays, "sizes": sizes, "labels": labels}.items():
        if array is not None:
            np.save(scratch / f"{name}.npy", array)
    hashes = {path.name: _sha256(path) for path in sorted(scratch.glob("*.npy"))}
    of_images = {name: hashes[name] for name in ("images.npy", "unlabeled.npy") if name in hashes}
    about = [of_images, None if labels is None else labels.tolist(), sizes.tolist()]
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


def _decoded(scratch: Path, source: Files) -> list[Any]:
    """Decode all files with every core of ours into ``images.npy``; returns each one's size, or what is wrong with it.

    Raises `DataError` where the disk has too little space, and where a process is killed.
    """
    n, side = len(source.paths), source.side
    needed, free = n * 3 * side**2, shutil.disk_usage(scratch).free
    if free < needed:
        what = f"{scratch.parent} has {free / 1e9:.1f} GB free, but the images take {needed / 1e9:.1f} GB"
        raise DataError(f"{what}. Free some space, or choose another --data-dir.")
    images = scratch / "images.npy"
    np.lib.format.open_memmap(images, "w+", np.uint8, (n, 3, side, side))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # ours, not all of a shared node
    try:
        with ProcessPoolExecutor(cores, initializer=end_with_parent) as pool:
            sizes = pool.map(_decode_into, repeat(images), repeat(side), range(n), source.paths, chunksize=CHUNK)
            return list(tqdm(sizes, "packing", n, unit=" images", mininterval=1, disable=n <= CHUNK))
    except BrokenProcessPool:
        raise DataError("A process that decodes was killed, perhaps for want of memory. Run it again.") from None


def _good(scratch: Path, source: Files, sizes: list[Any], skip_bad: bool) -> tuple[np.ndarray | None, np.ndarray]:
    """Labels and sizes of the images, once the bad ones are left out of ``images.npy``. Raises `DataError` for these,
    unless they are to be skipped, and where all are bad."""
    n, bad = len(sizes), [i for i, size in enumerate(sizes) if isinstance(size, str)]
    for i in bad:
        print(f"bad image: {source.paths[i]}: {sizes[i]}", file=sys.stderr)
    if not bad:
        return source.labels, np.array(sizes)
    if not skip_bad or len(bad) == n:
        what = f"{len(bad)} of {n} images are bad, listed above"
        raise DataError(f"{what}. Remove them, or leave them out with --skip-bad.")
    print(f"{len(bad)} bad images are left out, {n - len(bad)} remain", file=sys.stderr)
    rows = np.setdiff1d(np.arange(n), bad)
    np.save(scratch / "rows.npy", rows)
    images = np.load(scratch / "images.npy", mmap_mode="r")
    kept = np.lib.format.open_memmap(scratch / "kept.npy", "w+", np.uint8, (len(rows), *images.shape[1:]))
    for row, before in enumerate(rows):
        kept[row] = images[before]
    os.replace(scratch / "kept.npy", scratch / "images.npy")
    return None if source.labels is None else source.labels[rows], np.array([sizes[i] for i in rows])


def _decode_into(images: Path, side: int, row: int, path: Path) -> tuple[int, int] | str:
    """Decode a file into its row; returns its (height, width), or what is wrong with it."""
    try:
        _mapped(images)[row], size = decode(path, side)
    except BadImage as error:
        return str(error)
    return size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
