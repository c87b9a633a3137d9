"""Image files: find them in a folder, and decode one to uint8 pixels, as a person would see it."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from ccrepro.runtime.storage import listing

MAX_PIXELS = 64_000_000  # a larger image is refused as a decompression bomb
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 3 * MAX_PIXELS  # Pillow's 1 MB makes metadata damage
LONGEST = 640  # pixels of the longer side, to which larger images are reduced
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif")

TURNS = dict(enumerate((
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
), start=2))  # what makes an image of this EXIF orientation upright  # fmt: skip
KINDS = {  # files that are often named as images, and what is found among their first bytes, in lower case
    "an HEIC image; convert it to JPEG": rb"(?s)^.{4}ftyp(he|mif|msf)",
    "an SVG drawing": rb"<svg",
    "an HTML page": rb"<html|<!doctype html",
    "a Git LFS pointer; run `git lfs pull`": rb"git-lfs",
}  # fmt: skip
Range = tuple[float, float]  # of values: black and white, or the lowest and the highest
Source = str | os.PathLike | Image.Image  # a file, or Pillow's image of one


class BadImage(Exception):
    """A file that cannot be read as an image. Its text is the reason."""


class Measured(NamedTuple):
    """What a file holds, before its pixels are wanted: the height and width that `decode` makes, and whether it reduces
    them; the lowest and highest value of a deep image, or None; whether there are more pages or frames than the first.
    """

    height: int
    width: int
    reduced: bool
    values: Range | None
    more: bool


def measure(path: Source, longest: int = LONGEST) -> Measured:
    """Measure an image file; from its header alone, unless it is deep or to be turned. Raises `BadImage`."""
    with _opened(path) as image:
        own = _turned(image).size
        width, height = _reduced(own, longest)
        values, more = _deep(image), False
        with contextlib.suppress(Exception):  # it looks at the second page, and a damaged one is not our concern
            more = getattr(image, "is_animated", False)  # of pages, too
        reach = None if values is None else (float(values.min()), float(values.max()))
        return Measured(height, width, (width, height) != own, reach, more)


def joint_range(ranges: Iterable[Range | None]) -> Range | None:
    """The values of black and white for a collection of images with these lowest and highest values: black is 0, or the
    lowest of all where that is negative; white is the highest of all. None where no image is deep."""
    found = list(filter(None, ranges))
    if not found:
        return None
    black, white = min(0.0, *(low for low, _ in found)), max(high for _, high in found)
    return (black, white) if black < white else (black, black + 1)


def decode(path: Source, longest: int = LONGEST, values: Range | None = None) -> np.ndarray:
    """An image file, `as_seen` → uint8 (3, H, W), antialiased where its longer side is reduced to ``longest``. Raises
    `BadImage`."""
    with _opened(path) as image:
        upright = as_seen(image, values)
        if upright.size != (size := _reduced(upright.size, longest)):
            upright = upright.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(upright).transpose(2, 0, 1)


@contextlib.contextmanager
def _opened(path: Source) -> Iterator[Image.Image]:
    """The file, opened. Raises `BadImage` for whatever is wrong with it, here or in the block: what Pillow raises for a
    damaged file is not documented, and changes."""
    try:
        with contextlib.nullcontext(path) if isinstance(path, Image.Image) else Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width}×{image.height} pixels, more than {MAX_PIXELS:,}")
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(_kind(path)) from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"cannot be read: {reason}") from None


def _kind(path: str | Path) -> str:
    """What a file is that Pillow cannot open, told by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(1000)
    named = [kind for kind, mark in KINDS.items() if re.search(mark, head.lower())]
    if named:
        return f"of a kind that is not read: {named[0]}"
    return f"not an image: it begins with {head[:20]!r}" if head else "empty file"


def _reduced(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Both sides in proportion, so that neither exceeds ``longest``."""
    share = min(1, longest / max(size))
    return tuple(max(1, round(share * side)) for side in size)


def as_seen(image: Image.Image, values: Range | None = None) -> Image.Image:
    """The image in RGB: turned as its EXIF says, on white where it is transparent. values: black and white of a deep
    one; None takes those of its kind, 0 and 65535, or 0 and 1 for fractions."""
    image = _turned(image)
    if (deep := _deep(image)) is not None:
        black, white = values or ((0, 1) if image.mode == "F" else (0, 65535))
        image = Image.fromarray(((deep.clip(black, white) - black) * (255 / (white - black))).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    """The image upright, as its EXIF says; as it is where that is damaged, which does no harm to the pixels."""
    with contextlib.suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image.load()  # which turns a TIFF
            return image.transpose(TURNS[image.getexif().get(ExifTags.Base.Orientation)])
    return image


def _deep(image: Image.Image) -> np.ndarray | None:
    """The values of a grey image of more than 8 bits, or of fractions; 0 where one is not finite. None for others."""
    if image.mode[0] not in "IF":
        return None
    return np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)


def read(path: Source, longest: int = LONGEST, values: Range | None = None) -> np.ndarray | BadImage:
    """An image file → uint8 (3, H, W) as `decode` makes it, or what is wrong with it."""
    if not isinstance(path, Source):  # a gap in a table
        return BadImage("no path")
    try:
        there = isinstance(path, Image.Image) or os.path.isfile(path)
        return decode(path, longest, values) if there else BadImage("no such file")
    except BadImage as error:
        return error


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder that are not hidden, sorted; none where it is absent. Raises `OSError` as `listing`
    does."""
    return [file for file in listing(folder, "[!.]*") if is_image(file)]


def is_image(path: Path) -> bool:
    """Whether it is a file, or a link to one, whose name ends in one of `SUFFIXES`."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def visible_files(path: Path, failed: Callable[[OSError], None]) -> list[Path]:
    """The files of a folder, its sub-folders and the folders that are linked into it, each once, sorted; none that is
    hidden. ``failed`` is called with the error of each folder that cannot be listed."""
    found, seen = [], set()
    for folder, folders, names in os.walk(path, onerror=failed, followlinks=True):
        place, inner = os.path.realpath(folder), [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(inner, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))  # links last
        if place in seen:
            folders.clear()
        else:
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        seen.add(place)
    return sorted(found)
