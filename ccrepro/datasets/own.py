"""Pictures of one's own, as arrays or as files → uint8 images.

Letters: N images, C channels, H, W sides, S side of the square that files are decoded to.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ccrepro.datasets.decode import SUFFIXES, BadImage, as_seen, decode
from ccrepro.datasets.sources import digits, is_image, visible_files
from ccrepro.errors import ConfigError, PictureError

LARGEST_SIDE = 256  # that a picture is kept at
SHAPES = "(N, H, W), (N, H, W, 3) or (N, 3, H, W)"


def is_paths(x: Any) -> bool:
    """Whether these are files' names rather than pixels."""
    if isinstance(x, np.ndarray):
        return x.ndim == 1 and x.dtype.kind in "UO" and len(x) > 0 and isinstance(x[0], str | os.PathLike)
    return isinstance(x, Sequence) and not isinstance(x, str) and len(x) > 0 and isinstance(x[0], str | os.PathLike)


def unwrapped(x: Any) -> Any:
    """Pictures or paths without what they came in: torch's tensor, of any device and precision, as an array; the column
    of a table as a list; Pillow's pictures as arrays in colour."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        return (x.float() if x.is_floating_point() else x).numpy()
    if getattr(x, "ndim", 0) == 1 and (hasattr(x, "iloc") or x.dtype == object):
        x = x.tolist()
    if isinstance(x, list) and x and isinstance(x[0], Image.Image):
        return [np.asarray(as_seen(picture)) for picture in x]
    return x


def stacked(x: Any) -> np.ndarray:
    """One array of pictures. Raises `PictureError` where they are not of one shape."""
    try:
        return np.asarray(x)
    except ValueError:
        allowed = "They must have one size, and be all grey or all in colour"
        raise PictureError("pictures of different shapes", "X", allowed, "Resize them, or give their paths") from None


def from_array(x: np.ndarray, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Pixels in any usual order → uint8 (N, C, H, W), C 1 or 3.

    x: uint8, bool, or numbers in ``value_range``, by default [0, 1]; they are rounded to 256 levels. Raises
    `PictureError` for another shape, for values that are not finite (with the first such row), and for values outside
    the range.
    """
    x = _channels_first(x)
    if x.dtype == np.uint8 and value_range is None:
        return np.ascontiguousarray(x)
    if x.dtype.kind not in "fiub":
        raise PictureError(f"X holds {x.dtype}", "X", "Pixels are uint8, or numbers from 0 to 1", "Convert it")
    x = x.astype(np.float32)
    _check_finite(x)
    low, high = value_range or (0.0, 1.0)
    slack = (high - low) * 1e-6  # rounding, as of a picture that was resized
    if x.min() < low - slack or x.max() > high + slack:
        what = f"values from {x.min():g} to {x.max():g}"
        fix = "Scale X, make it uint8, or give value_range=(darkest, brightest)"
        raise PictureError(what, "X", f"Numbers from {low:g} to {high:g} are pixels here", fix)
    return np.round((x - low) * (255 / (high - low))).astype(np.uint8)


def _channels_first(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W), C 1 or 3. Where both ends could be channels, the order is taken for (N, C, H, W)."""
    if x.ndim == 3 and x.shape[2] == 3:
        what = f"X has shape {x.shape}, which looks like one colour picture"
        raise PictureError(what, "X", f"Expected {SHAPES}", "X[None] is a collection of one")
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return x
    if x.ndim == 4 and x.shape[3] in (1, 3):
        return x.transpose(0, 3, 1, 2)
    if x.ndim == 2:
        fix = "X.reshape(-1, H, W), or image_shape=(H, W)"
        raise PictureError(f"X is flat, of shape {x.shape}", "X", f"Expected {SHAPES}", f"Convert it: {fix}")
    fix = "X[..., :3] drops the transparency" if x.ndim == 4 and x.shape[3] == 4 else "Reshape or transpose it"
    fix = "Paths come in a list" if x.ndim == 0 else fix
    raise PictureError(f"X has shape {x.shape}", "X", f"Expected {SHAPES}", fix)


def _check_finite(x: np.ndarray) -> None:
    finite = np.isfinite(x).reshape(len(x), -1).all(1)
    if not finite.all():
        row = int(np.argmin(finite))
        kind = "NaN" if np.isnan(x[row]).any() else "inf"
        what = f"row {row} of X is the first of {np.sum(~finite)} that contain NaN or inf: it has {kind}"
        raise PictureError(what, "X", "Every pixel must be a finite number", "Drop these rows, or fill them in")


def fold(x: np.ndarray, shape: tuple[int, ...] | str) -> np.ndarray:
    """Flat rows (N, F) as pictures (N, C, H, W): ``shape`` is (H, W) or (C, H, W), or ``square`` for the smallest
    square, with zeros after the last value. Raises `ConfigError` for another ``shape``, and `PictureError` where F does
    not fit."""
    n, width = x.shape
    if shape != "square" and not (isinstance(shape, tuple | list) and len(shape) in (2, 3)):
        raise ConfigError(f"image_shape is {shape!r}", "image_shape", "(H, W), (C, H, W) or 'square'", "Correct it")
    if shape == "square":
        side = max(2, int(np.ceil(np.sqrt(width))))
        return np.pad(x, ((0, 0), (0, side * side - width))).reshape(n, 1, side, side)
    if np.prod(shape) != width:
        what = f"X has {width} values a row, image_shape {tuple(shape)} takes {np.prod(shape)}"
        raise PictureError(what, "X", "They must be equal", "Correct image_shape")
    return x.reshape(n, *shape) if len(shape) == 3 else x.reshape(n, 1, *shape)


class Listing(NamedTuple):
    pictures: list[Path]
    left_out: str  # files of other kinds, how many of each: "2 .heic, 1 broken link", or nothing


def look_through(path: str | Path) -> Listing:
    """The picture files of a folder and of its sub-folders, by name; or the one file that is named.

    Raises `PictureError` where there are none.
    """
    path = Path(path)
    if path.is_file():
        return Listing([path], "")
    if not path.is_dir():
        raise PictureError(f"no folder or picture {path}", "pictures", "Name one that is there", "Correct it")
    pictures, others = [], []
    for file in visible_files(path, deep=True):
        (pictures if is_image(file) else others).append(file)
    kinds = Counter((p.suffix.lower() or "without ending") if p.is_file() else "broken link" for p in others)
    left_out = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())
    if not pictures:
        what = f"no pictures in {path}" + (f", but {left_out}" if left_out else "")
        allowed = f"Files that end in {', '.join(SUFFIXES)}"
        raise PictureError(what, "pictures", allowed, "Choose another folder")
    return Listing(pictures, left_out)


def usual_side(paths: Sequence[str | Path], n: int = 200) -> int:
    """The side S to keep pictures at: the median of the shorter sides of up to n of them, at most 256."""
    sides = []
    for path in paths[:: max(1, len(paths) // n)]:
        try:
            with Image.open(path) as image:  # reads the header alone
                sides.append(min(image.size))
        except (OSError, ValueError, SyntaxError, AttributeError, Image.DecompressionBombError):
            continue  # named later, by whoever decodes it
    return int(min(LARGEST_SIDE, max(8, np.median(sides)))) if sides else LARGEST_SIDE


def read(path: str | Path, side: int) -> np.ndarray | BadImage:
    """A picture, uint8 (3, S, S), or the reason why there is none."""
    if not isinstance(path, str | os.PathLike):  # a gap in a table
        return BadImage("no path")
    try:
        return decode(path, side)[0] if os.path.isfile(path) else BadImage("no such file")
    except BadImage as error:
        return error


def from_paths(paths: Sequence[str | Path], side: int) -> np.ndarray:
    """uint8 (N, 3, S, S). Raises `PictureError` that names the bad pictures."""
    images, bad = np.empty((len(paths), 3, side, side), np.uint8), []
    with ThreadPoolExecutor() as pool:
        for row, picture in enumerate(pool.map(read, paths, repeat(side))):
            if isinstance(picture, BadImage):
                bad.append(f"{paths[row]}: {picture}")
            else:
                images[row] = picture
    if bad:
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        what = f"{len(bad)} of {len(paths)} pictures are bad: {'; '.join(bad[:5])}{more}"
        raise PictureError(what, "X", "Every file must be a picture", "Leave them out")
    return images


def write_digits(folder: str | Path, n: int = 400) -> Path:
    """The first n of scikit-learn's handwritten digits as PNG files, in a sub-folder for each digit: a collection to
    try things on."""
    images, labels, _, _ = digits()
    for row in range(n):
        path = Path(folder, str(labels[row]), f"{row:04d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[row, 0]).save(path)
    return Path(folder)
