"""One image file → a uint8 square, as a person would see it; or the reason why not."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # more is taken for a decompression bomb
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif")


class BadImage(Exception):
    """A file that is no picture we can read; the text is the reason."""


def decode(path: str | Path, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 (3, side, side), squeezed to a square, and the picture's own (height, width).

    Turned as its EXIF says, transparency laid on white, CMYK, grey, palette and 16-bit pictures turned into RGB.
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
    """The picture in RGB, turned as its EXIF says, transparency laid on white."""
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
