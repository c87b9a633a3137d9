"""Decode a data set once into a folder that is mapped into memory from then on.

A packed folder holds ``images.npy`` (uint8), ``sizes.npy`` (every picture's own height and width), perhaps
``labels.npy`` and ``unlabeled.npy``, and ``index.json``, written last: class names, what it was made from, and the
SHA-256 of sources and arrays. It is used only where all of that fits; otherwise it is made anew. An interrupted packing
goes on where it stopped. No array is ever in memory as a whole: a packed set may be larger than that.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccrepro.datasets.decode import BadImage, decode
from ccrepro.datasets.sources import Arrays, Bundle, Files
from ccrepro.errors import DataError
from ccrepro.files import atomic_write

VERSION = 2
CHUNK = 256  # files per unit of work, and images that are copied at once


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
    if isinstance(source, Files):
        _check_space(folder, len(source.paths) * 3 * source.side**2)
        arrays, sizes = _decoded(scratch, source, fingerprint(source), skip_bad)
    else:
        arrays = source.read()
        sizes = np.broadcast_to(arrays.images.shape[2:], (len(arrays.images), 2))
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        np.save(scratch / "images.npy", arrays.images)
        if arrays.unlabeled is not None:
            np.save(scratch / "unlabeled.npy", arrays.unlabeled)
    np.save(scratch / "sizes.npy", sizes.astype(np.int64))
    if arrays.labels is not None:
        np.save(scratch / "labels.npy", arrays.labels.astype(np.int64))
    hashes = {path.name: _sha256(path) for path in sorted(scratch.glob("*.npy"))}
    index = {
        "version": VERSION,
        "made_from": fingerprint(source),
        "source_sha256": _source_hashes(source),
        "class_names": list(arrays.class_names),
        "sha256": hashes,
        "digest": _digest(hashes, arrays.labels, sizes),
    }
    atomic_write(scratch / "index.json", json.dumps(index))
    (scratch / "done.txt").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)
    return read(folder)


def _digest(hashes: dict[str, str], labels: np.ndarray | None, sizes: np.ndarray) -> str:
    """SHA-256 of a data set: of the JSON ``[hashes of its images, labels, sizes]``, made piece by piece."""
    images = {name: digest for name, digest in hashes.items() if name in ("images.npy", "unlabeled.npy")}
    digest = hashlib.sha256(f"[{json.dumps(images)}".encode())
    for array in (labels, sizes):
        digest.update(b", null" if array is None else b", [")
        for start in range(0, 0 if array is None else len(array), 2**16):
            piece = json.dumps(array[start : start + 2**16].tolist())[1:-1]
            digest.update(f"{', ' if start else ''}{piece}".encode())
        digest.update(b"" if array is None else b"]")
    digest.update(b"]")
    return digest.hexdigest()


def _check_space(folder: Path, needed: int) -> None:
    """Raise `DataError` before anything is decoded where the disk would be full in the middle of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        what, fix = f"too little space for {needed / 1e9:.1f} GB of pictures", "Free some, or choose another --data-dir"
        raise DataError(what, str(folder.parent), f"{free / 1e9:.1f} GB are free", fix)


def _decoded(scratch: Path, source: Files, made_from: str, skip_bad: bool) -> tuple[Arrays, np.ndarray]:
    """Decode all files with every core of ours into ``images.npy``; what an earlier try has done is kept.

    Raises `DataError` where a process is killed.
    """
    n, side = len(source.paths), source.side
    done = _done(scratch, made_from)
    if not done:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        np.lib.format.open_memmap(scratch / "images.npy", "w+", np.uint8, (n, 3, side, side)).flush()
        (scratch / "done.txt").write_text(f"{made_from}\n")
    todo = [(scratch, i, source.paths[i : i + CHUNK], side) for i in range(0, n, CHUNK) if i not in done]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # ours, not all of a shared node
    try:
        with (scratch / "done.txt").open("a") as log, ProcessPoolExecutor(cores, initializer=_end_with_parent) as pool:
            for start, chunk in _progress(pool.map(_decode_chunk, todo), len(todo), n):
                log.write(json.dumps([start, chunk]) + "\n")
                log.flush()
                done[start] = chunk
    except BrokenProcessPool:
        what = "a process that decodes was killed, perhaps for want of memory"
        raise DataError(what, str(scratch), "All must live", "Run it again: it goes on from here") from None
    sizes: list[Any] = [size for start in sorted(done) for size in done[start]]
    bad = [i for i, size in enumerate(sizes) if isinstance(size, str)]
    for i in bad:
        print(f"bad image: {source.paths[i]}: {sizes[i]}", file=sys.stderr)
    if bad and not skip_bad:
        what = f"{len(bad)} of {n} pictures are bad, listed above"
        where = str(source.paths[bad[0]].parent)
        fix = "Remove them, or leave them out with --skip-bad, of cluster or datasets get"
        raise DataError(what, where, "Every file must be a picture", fix)
    return _kept(scratch, source, sizes, bad)


def _kept(scratch: Path, source: Files, sizes: list[Any], bad: list[int]) -> tuple[Arrays, np.ndarray]:
    """Leave the bad rows out of what was decoded."""
    keep = np.setdiff1d(np.arange(len(sizes)), bad)
    images = np.load(scratch / "images.npy", mmap_mode="r")
    if bad:
        print(f"{len(bad)} bad pictures are left out, {len(keep)} remain", file=sys.stderr)
        kept = np.lib.format.open_memmap(scratch / "kept.npy", "w+", np.uint8, (len(keep), *images.shape[1:]))
        for start in range(0, len(keep), CHUNK):
            kept[start : start + CHUNK] = images[keep[start : start + CHUNK]]
        kept.flush()
        images = kept
        (scratch / "done.txt").unlink()  # from here on its rows are not those of images.npy: a restart begins anew
        os.replace(scratch / "kept.npy", scratch / "images.npy")
    labels = None if source.labels is None else source.labels[keep]
    return Arrays(images, labels, source.class_names), np.array([sizes[i] for i in keep], dtype=np.int64)


def _done(scratch: Path, made_from: str) -> dict[int, list[Any]]:
    """Chunks that an interrupted packing of the same source has finished: first file → sizes or reasons."""
    try:
        head, *lines = (scratch / "done.txt").read_text().splitlines()
        return dict(map(json.loads, lines)) if head == made_from else {}
    except (OSError, ValueError):
        return {}


def _end_with_parent() -> None:
    """Else a worker would wait for ever for work of a parent that was killed."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def _decode_chunk(job: tuple[Path, int, list[Path], int]) -> tuple[int, list[Any]]:
    """Decode some files into their rows; returns each one's (height, width), or in its place what is wrong with it."""
    scratch, start, paths, side = job
    images = np.load(scratch / "images.npy", mmap_mode="r+")
    found: list[Any] = []
    for row, path in enumerate(paths, start):
        try:
            images[row], size = decode(path, side)
            found.append(size)
        except BadImage as error:
            found.append(str(error))
    images.flush()
    return start, found


def _progress(chunks: Iterator[Any], total: int, n: int) -> Iterator[Any]:
    """Pass the chunks on, with a line now and then."""
    start = printed = time.monotonic()
    for number, chunk in enumerate(chunks, 1):
        yield chunk
        now = time.monotonic()
        if now - printed > 5:
            printed, rate = now, number * CHUNK / (now - start)
            left = (total - number) * CHUNK / rate
            print(f"packing {n:,} pictures: {number}/{total} parts, {rate:.0f} a second, {left:.0f} s left", flush=True)


def _source_hashes(source: Bundle | Files) -> dict[str, str]:
    """SHA-256 of each file of a bundle; of image files one over all of theirs, in order."""
    hashes = [_sha256(path) for path in source.paths]
    if isinstance(source, Bundle):
        return dict(zip([path.name for path in source.paths], hashes, strict=True))
    return {f"{len(hashes)} files": hashlib.sha256("".join(hashes).encode()).hexdigest()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
