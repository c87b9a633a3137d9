"""Decode a data set once into a folder that is mapped into memory from then on.

A packed folder holds ``images.npy``; or, of image files, each of which keeps its own size, ``pixels.npy`` and
``sizes.npy``. It may hold ``labels.npy``, ``unlabeled.npy`` and, where bad files were left out, ``rows.npy``: the
places of the others among the source's paths. ``index.json``, written last, has the class names, what the folder was
made from, and the SHA-256 of each array. Images are never in memory all at once.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from tqdm.std import tqdm

from ccrepro.data.images import BadImage, Range, decode, joint_range, measure
from ccrepro.data.readers import Bundle, Files
from ccrepro.errors import DataError
from ccrepro.runtime.ragged import Ragged, channels_of, joined, sizes_of, starts_of
from ccrepro.runtime.signals import end_with_parent
from ccrepro.runtime.storage import atomic_write, make_array

VERSION = 4
CHUNK = 256  # files that a process takes at once


@dataclass(frozen=True)
class ImageSet:
    """A data set of N images of C channels (1 or 3).

    images: uint8 (N, C, S, S), or `Ragged` where sizes differ; mapped from disk if the set is packed. labels: int64
    (N,), never read in training; None for a folder without classes. class_names: one per label value. sha256: of all of
    these. unlabeled: uint8 (M, C, S, S), or None. reduced: how many images were too large to keep all their pixels.
    values: what was black and white in deep images (`joint_range`); None if there were none.
    """

    name: str
    images: np.ndarray | Ragged
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    sha256: str
    unlabeled: np.ndarray | None = None
    reduced: int = 0
    values: Range | None = None

    @property
    def channels(self) -> int:
        """C."""
        return channels_of(self.images)

    def __str__(self) -> str:
        """How many images of which sizes, and of which values if some are deep."""
        sizes = sizes_of(self.images)
        sizes = sizes[np.argsort(sizes.prod(1), kind="stable")[[0, -1]]]
        small, large = (f"{height}×{width}" for height, width in sizes)
        span = f"of {small} pixels" if small == large else f"of {small} to {large} pixels"
        reduced = f", {self.reduced:,} of them reduced" if self.reduced else ""
        deep = ", {:g} black and {:g} white where deeper than 8 bits".format(*self.values) if self.values else ""
        return f"{len(self.images):,} images {span}{reduced}{deep}"


def fingerprint(source: Bundle | Files) -> str | None:
    """SHA-256 of what a packed folder is made from: names, lengths and times of its files. None if one is missing."""
    about = [VERSION]
    if isinstance(source, Files):
        about += [source.longest, list(source.class_names), None if source.labels is None else source.labels.tolist()]
    try:
        status = [(p.parent.name, p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in source.paths]
    except FileNotFoundError:
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
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return _mapped(folder, index)


def _mapped(folder: Path, index: dict[str, Any]) -> ImageSet:
    arrays = {Path(name).stem: np.load(folder / name, mmap_mode="r") for name in index["sha256"]}
    images = joined(arrays["pixels"], arrays["sizes"]) if "pixels" in arrays else arrays["images"]
    parts = {name: arrays.get(name) for name in ("labels", "unlabeled")}
    about = {"class_names": tuple(index["class_names"]), "sha256": index["digest"], "reduced": index["reduced"]}
    about["values"] = tuple(index["values"]) if index["values"] else None
    return ImageSet(folder.name, images, **parts, **about)


def write(folder: Path, source: Bundle | Files, skip_bad: bool = False) -> ImageSet:
    """Pack a source. Raises `DataError` where files are bad, once all are listed, unless they are to be skipped."""
    scratch = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    if isinstance(source, Files):
        arrays, class_names = _decoded(scratch, source, skip_bad), source.class_names
        sizes, reduced, values = arrays["sizes"], arrays.pop("reduced"), arrays.pop("values")
    else:
        images, labels, class_names, unlabeled = source.read()
        arrays, sizes = {"images": images, "unlabeled": unlabeled, "labels": labels}, sizes_of(images)
        reduced, values = 0, None
    for name, array in arrays.items():
        if array is not None:
            np.save(scratch / f"{name}.npy", array)
    hashes = {path.name: _sha256(path) for path in sorted(scratch.glob("*.npy"))}
    of_images = {name: hashes[name] for name in ("images.npy", "pixels.npy", "unlabeled.npy") if name in hashes}
    about = [of_images, None if arrays["labels"] is None else arrays["labels"].tolist(), sizes.tolist()]
    index = {
        "version": VERSION,
        "made_from": fingerprint(source),
        "class_names": list(class_names),
        "reduced": reduced,
        "values": values,
        "sha256": hashes,
        "digest": hashlib.sha256(json.dumps(about).encode()).hexdigest(),  # of the data set; the records hold it
    }
    atomic_write(scratch / "index.json", json.dumps(index))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)
    return _mapped(folder, index)


def _decoded(scratch: Path, source: Files, skip_bad: bool) -> dict[str, Any]:
    """Decode all files into ``pixels.npy``; returns the other arrays, how many images were ``reduced``, and ``values``
    as in `ImageSet`. Raises `DataError` as `write` does, where all files are bad, and where the disk is too small."""
    found = _on_all_cores("measuring", measure, source.paths, repeat(source.longest))
    rows = [row for row, size in enumerate(found) if not isinstance(size, BadImage)]
    sizes = np.array([found[row][:2] for row in rows], dtype=np.int64).reshape(-1, 2)
    values = joint_range(found[row].values for row in rows)
    make_array(scratch / "pixels.npy", "images", np.uint8, (3 * int(sizes.prod(1).sum()),), "--data-dir")
    into, paths = partial(_decode_into, scratch / "pixels.npy", source.longest, values), [source.paths[r] for r in rows]
    for row, error in zip(rows, _on_all_cores("packing", into, paths, starts_of(sizes), sizes), strict=True):
        found[row] = error or found[row]
    bad = [row for row, size in enumerate(found) if isinstance(size, BadImage)]
    for row in bad:
        print(f"bad image: {source.paths[row]}: {found[row]}", file=sys.stderr)
    if not bad:
        if pages := sum(image.more for image in found):
            print(f"files of several pages or frames, of which the first is used: {pages:,}", file=sys.stderr)
        reduced = sum(image.reduced for image in found)
        return {"sizes": sizes, "labels": source.labels, "reduced": reduced, "values": values}
    if not skip_bad or len(bad) == len(found):
        what = f"{len(bad)} of {len(found)} images are bad, listed above"
        raise DataError(f"{what}. Remove them, or leave them out with --skip-bad.")
    print(f"{len(bad)} bad images are left out, {len(found) - len(bad)} remain", file=sys.stderr)
    rows = np.setdiff1d(np.arange(len(found)), bad)
    labels = None if source.labels is None else source.labels[rows]
    good = source._replace(paths=[source.paths[row] for row in rows], labels=labels)
    return {**_decoded(scratch, good, skip_bad=False), "rows": rows}


def _on_all_cores(name: str, function: Callable[..., Any], paths: Sequence[Path], *each: Iterable[Any]) -> list[Any]:
    """The function of each path and its other arguments, or the `BadImage` that it raised. Raises `DataError` where a
    process is killed."""
    try:
        with ProcessPoolExecutor(joblib.cpu_count(), initializer=end_with_parent) as pool:
            found = pool.map(partial(_or_error, function), paths, *each, chunksize=CHUNK)
            return [*tqdm(found, name, len(paths), unit=" images", mininterval=1, disable=len(paths) <= CHUNK)]
    except BrokenProcessPool:
        raise DataError("A decoding process was killed, perhaps because memory was full. Run it again.") from None


def _or_error(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except BadImage as error:
        return error


def _decode_into(pixels: Path, longest: int, values: Range | None, path: Path, start: int, size: np.ndarray) -> None:
    """Decode a file of this (height, width) into its place."""
    image = decode(path, longest, values)
    if image.shape[1:] != tuple(size):
        raise BadImage("damaged: its header gives another size than its pixels have")
    np.load(pixels, mmap_mode="r+")[start : start + image.size].reshape(image.shape)[:] = image


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
