"""Image files: find them in a folder, and decode one to uint8 pixels, as a person would see it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # a larger image is refused as a decompression bomb
LONGEST = 640  # pixels of the longer side, to which larger images are reduced
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif")


class BadImage(Exception):
    """A file that cannot be read as an image. Its text is the reason."""


def decode(path: str | Path, longest: int = LONGEST) -> np.ndarray:
    """An image file, `as_seen` → uint8 (3, H, W), antialiased where its longer side is reduced to ``longest``. Raises
    `BadImage`."""
    with _opened(path) as image:
        upright = as_seen(image)
        if upright.size != (size := _reduced(upright.size, longest)):
            upright = upright.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(upright).transpose(2, 0, 1)


def size_of(path: str | Path, longest: int = LONGEST) -> tuple[int, int, bool]:
    """The height and width that `decode` makes, and whether it reduces them; from the header alone, unless the image is
    to be turned. Raises `BadImage`."""
    with _opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        own = ImageOps.exif_transpose(image).size if turned else image.size
        width, height = _reduced(own, longest)
        return height, width, (width, height) != own


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The file, opened. Raises `BadImage` for whatever is wrong with it, here or in the block."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width}×{image.height} pixels, more than {MAX_PIXELS:,}")
            yield image
    except UnidentifiedImageError:
        raise BadImage("not an image" if os.path.getsize(path) else "empty file") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher than ours
        raise BadImage(f"more than {MAX_PIXELS:,} pixels: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # the file system's, not Pillow's
            raise BadImage(f"cannot be read: {error.strerror}") from None
        raise BadImage(f"damaged: {' '.join(str(error).split())}") from None


def _reduced(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Both sides in proportion, so that neither exceeds ``longest``."""
    share = min(1, longest / max(size))
    return tuple(max(1, round(share * side)) for side in size)


def as_seen(image: Image.Image) -> Image.Image:
    """The image in RGB: turned as its EXIF says, on white where it is transparent, 16 bits a channel reduced to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # grey, of 16 bits or more, or of fractions
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        tops = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        top = next((top for top in tops if values.max(initial=0) <= top), tops[-1])
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read(path: str | Path, longest: int = LONGEST) -> np.ndarray | BadImage:
    """An image file → uint8 (3, H, W) as `decode` makes it, or what is wrong with it."""
    if not isinstance(path, str | os.PathLike):  # a gap in a table
        return BadImage("no path")
    try:
        return decode(path, longest) if os.path.isfile(path) else BadImage("no such file")
    except BadImage as error:
        return error


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder that are not hidden, sorted."""
    return sorted(file for file in folder.glob("[!.]*") if is_image(file))


def is_image(path: Path) -> bool:
    """Whether it is a file, or a link to one, whose name ends in one of `SUFFIXES`."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def visible_files(path: Path) -> list[Path]:
    """The files of a folder, its sub-folders and the folders that are linked into it, each once, sorted; none that is
    hidden."""
    found, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        place, inner = os.path.realpath(folder), [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(inner, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))  # links last
        if place in seen:
            folders.clear()
        else:
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        seen.add(place)
    return sorted(found)
