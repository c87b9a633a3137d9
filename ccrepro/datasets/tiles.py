"""A packed data set as lossless WebP tiles for a slow line, and back into the same bytes.

CIFAR-10's 184 MB become 101. Pillow alone decodes them, in seconds.
"""

import io
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccrepro import files
from ccrepro.datasets import pack
from ccrepro.errors import DataError

GRID = 16  # pictures along either side of a tile
PACKED = ".zlib"  # ending of what is no picture: index, labels, sizes


def write(packed: Path) -> dict[str, bytes]:
    """The files that rebuild a packed folder: its index and small arrays, the head of its images, and the tiles.

    Raises `DataError` for a folder without colour pictures, or with unlabeled ones.
    """
    images = np.load(packed / "images.npy", mmap_mode="r")
    if images.shape[1] != 3 or (packed / "unlabeled.npy").exists():
        what = f"{packed.name} cannot be sent: {images.shape[1]} channels, or unlabeled images beside the labeled"
        raise DataError(what, str(packed), "Colour pictures, labeled or not, but not both", "Choose another data set")
    head = (packed / "images.npy").open("rb").read(images.offset)
    tiles = {f"{path.name}{PACKED}": zlib.compress(path.read_bytes()) for path in _small(packed)} | {"head": head}
    for start in range(0, len(images), GRID**2):
        tiles[f"{start:07d}.webp"] = _encode(images[start : start + GRID**2])
    return tiles


def read(folder: Path, packed: Path) -> pack.Packed:
    """Rebuild the packed folder from these files. Raises `DataError` unless it hashes as the one they were made of."""
    head, scratch = (folder / "head").read_bytes(), packed.with_name(f"{packed.name}.partial")
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "images.npy").open("wb") as file:
        file.write(head)
        for path in sorted(folder.glob("*.webp")):
            file.write(_decode(path.read_bytes()).tobytes())
    with (scratch / "images.npy").open("rb") as file:  # the head says how many pictures there are, and how large
        n, _, side, _ = _shape(file)
    _cut(scratch / "images.npy", len(head) + n * 3 * side**2)
    for path in folder.glob(f"*{PACKED}"):
        files.atomic_write(scratch / path.name.removesuffix(PACKED), zlib.decompress(path.read_bytes()))
    found = pack.read(scratch)
    if found is None:
        what, allowed = "the pictures differ from those that were sent", "Their SHA-256 must be that of index.json"
        raise DataError(what, str(folder), allowed, "Send them again")
    packed.mkdir(parents=True, exist_ok=True)
    for path in [scratch / "images.npy", *_small(scratch)]:
        path.replace(packed / path.name)
    shutil.rmtree(scratch)
    return pack.read(packed)


def _small(folder: Path) -> list[Path]:
    """Labels and sizes, and the index last: without it there is no packed folder."""
    return [*sorted(path for path in folder.glob("*.npy") if path.name != "images.npy"), folder / "index.json"]


def _shape(file: Any) -> tuple[int, ...]:
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)[0]


def _cut(path: Path, size: int) -> None:
    """Drop the blank pictures that fill the last tile."""
    with path.open("r+b") as file:
        file.truncate(size)


def _encode(images: np.ndarray) -> bytes:
    """uint8 (n, 3, S, S), n at most GRID² → one WebP of GRID × GRID pictures, the last ones black where n is less."""
    n, _, side, _ = images.shape
    full = np.zeros((GRID**2, 3, side, side), np.uint8)
    full[:n] = images
    tile = full.reshape(GRID, GRID, 3, side, side).transpose(0, 3, 1, 4, 2).reshape(GRID * side, GRID * side, 3)
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "WEBP", lossless=True, exact=True, method=4, quality=75)
    return buffer.getvalue()


def _decode(blob: bytes) -> np.ndarray:
    """One WebP → uint8 (GRID², 3, S, S)."""
    tile = np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))
    side = tile.shape[0] // GRID
    return tile.reshape(GRID, side, GRID, side, 3).transpose(0, 2, 4, 1, 3).reshape(GRID**2, 3, side, side)
