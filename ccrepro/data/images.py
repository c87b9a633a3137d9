"""Image files: which ones a folder holds, and one of them → a uint8 square, as a person would see it."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # more is taken for a decompression bomb
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif")


class BadImage(Exception):
    """A file that is no image we can read; the text is the reason."""


def decode(path: str | Path, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 (3, side, side), squeezed to a square, and the image's own (height, width).

    Turned as its EXIF says, transparency laid on white, CMYK, grey, palette and 16-bit images turned into RGB.
    Raises `BadImage`.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width}×{image.height} pixels, more than {MAX_PIXELS:,}")
            upright = as_seen(image)
    except UnidentifiedImageError:
        raise BadImage("empty file" if Path(path).stat().st_size == 0 else "not an image") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher than ours
        raise BadImage(f"more than {MAX_PIXELS:,} pixels: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # the file system's, not Pillow's
            raise BadImage(f"cannot be read: {error.strerror}") from None
        raise BadImage(f"damaged: {' '.join(str(error).split())}") from None
    size = (upright.height, upright.width)
    square = upright if size == (side, side) else upright.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1), size


def as_seen(image: Image.Image) -> Image.Image:
    """The image in RGB, turned as its EXIF says, transparency laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a channel, or more, in grey; or fractions
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        tops = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        top = next((top for top in tops if values.max(initial=0) <= top), tops[-1])
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read(path: str | Path, side: int) -> np.ndarray | BadImage:
    """An image, uint8 (3, S, S), or the reason why there is none."""
    if not isinstance(path, str | os.PathLike):  # a gap in a table
        return BadImage("no path")
    try:
        return decode(path, side)[0] if os.path.isfile(path) else BadImage("no such file")
    except BadImage as error:
        return error


def image_files(path: Path, deep: bool = False) -> list[Path]:
    """The image files of a folder, by name; with ``deep`` those of its sub-folders too."""
    return [p for p in visible_files(path, deep) if is_image(p)]


def is_image(path: Path) -> bool:
    """Whether it is a file, or a link to one, with an ending that is read."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def visible_files(path: Path, deep: bool) -> list[Path]:
    """The files of a folder, by name, hidden ones left out; with ``deep`` those of its sub-folders, and of folders that
    are linked into it, once each."""
    found, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        place = os.path.realpath(folder)
        visible = [name for name in folders if deep and place not in seen and not name.startswith(".")]
        folders[:] = sorted(visible, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        found += [Path(folder, name) for name in names if place not in seen and not name.startswith(".")]
        seen.add(place)
    return sorted(found)
