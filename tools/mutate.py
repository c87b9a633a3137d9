"""Damage image files at random and read them: does anything but `BadImage` come out, or does a process die or hang?

``python tools/mutate.py [FILES]`` prints counts by format. 20,000 files take some minutes.
"""

import collections
import io
import random
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ccrepro.data.images import BadImage, decode, measure

FORMATS = ("jpeg", "png", "gif", "tiff", "webp", "avif")


def sound(kind: str, rng: random.Random) -> bytes:
    """A small image with EXIF, in a mode and a size of its own."""
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (rng.randint(1, 40), rng.randint(1, 40), 3))
    image, exif = Image.fromarray(pixels.astype(np.uint8)), Image.Exif()
    exif[0x0112], exif[0x010E] = rng.randint(1, 8), "a description"
    modes = {"jpeg": ("RGB", "L", "CMYK"), "png": ("RGB", "L", "P", "RGBA", "LA", "I;16"), "gif": ("P", "L")}
    modes |= {"tiff": ("RGB", "L", "CMYK", "F", "I;16", "1"), "webp": ("RGB", "RGBA"), "avif": ("RGB", "RGBA")}
    mode = rng.choice(modes[kind])
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    image.save(buffer := io.BytesIO(), kind, exif=exif, **({"save_all": True} if kind in ("gif", "tiff") else {}))
    return buffer.getvalue()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The file with some bytes changed, cut out or doubled, or without its end; the header is hit often."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(min(len(content), rng.choice((64, 512, 1 << 20))) or 1)
        match rng.randrange(4):
            case 0:
                content[at : at + 1] = bytes([rng.choice((0, 255, 127, 128, rng.randrange(256)))])
            case 1:
                del content[at : at + rng.randint(1, 40)]
            case 2:
                content[at:at] = content[at : at + rng.randint(1, 40)]
            case _ if rng.random() < 0.2:
                del content[at:]
    return bytes(content)


def tried(kind: str, seed: int) -> str:
    """What becomes of one damaged file."""
    rng = random.Random(f"{kind} {seed}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.{kind}")
        path.write_bytes(damaged(sound(kind, rng), rng))
        try:
            measure(path)
            decode(path, 320, (0, 65535))
        except BadImage:
            return "bad"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "read"


if __name__ == "__main__":
    each = (int(sys.argv[1]) if len(sys.argv) > 1 else 20_000) // len(FORMATS)
    for kind in FORMATS:
        with ProcessPoolExecutor() as pool:
            print(
                kind, dict(collections.Counter(pool.map(tried, [kind] * each, range(each), chunksize=50))), flush=True
            )
