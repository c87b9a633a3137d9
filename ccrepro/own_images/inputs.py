"""Your own images, as arrays or as files → uint8 pixels.

Letters: N images, C channels, H, W sides, F values of a flat row.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccrepro.data.images import SUFFIXES, BadImage, as_seen, is_image, read, visible_files
from ccrepro.errors import ConfigError, ImageError
from ccrepro.runtime.ragged import Ragged, stacked

LONGEST = 320  # pixels to which the longer side of a file is reduced: views have 128 unless one asks for more


def is_paths(x: Any) -> bool:
    """Whether these are names of files rather than pixels."""
    is_list = x.ndim == 1 if isinstance(x, np.ndarray) else isinstance(x, Sequence) and not isinstance(x, str)
    return is_list and len(x) > 0 and isinstance(x[0], str | os.PathLike)


def unwrapped(x: Any) -> Any:
    """Images as an array, also Pillow's and torch's; paths as a list; a table or a sparse matrix unchanged. Raises
    `ImageError` for images of different shapes."""
    if hasattr(x, "detach"):
        return x.detach().cpu().numpy()
    if getattr(x, "ndim", 0) == 1 and (hasattr(x, "iloc") or x.dtype == object):  # a column of a table
        x = x.tolist()
    if is_paths(x) or hasattr(x, "iloc") or hasattr(x, "tocsr"):
        return x
    if isinstance(x, list) and x and isinstance(x[0], Image.Image):
        x = [np.asarray(as_seen(image)) for image in x]
    try:
        return np.asarray(x)
    except ValueError:
        fix = "Make them all of one size, grey or in colour, or give their paths"
        raise ImageError(f"The images in X have different shapes. {fix}.") from None


def from_array(x: np.ndarray, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Pixels in any usual order → uint8 (N, C, H, W), C 1 or 3; if both ends could be channels, the first are taken.

    x: uint8, bool, or numbers in ``value_range``, which are rounded to 256 levels; None is (0, 1). Raises `ImageError`
    for another shape, and for values that are not finite or outside the range; `ConfigError` for a range that is none.
    """
    try:
        low, high = map(float, value_range or (0, 1))
    except (TypeError, ValueError):
        low = high = 0.0
    if low >= high:
        raise ConfigError(f"value_range is {value_range!r}. Give two numbers, of black and white, the smaller first.")
    if x.size and x.ndim == 3 and x.shape[2] != 3:
        x = x[:, None]
    elif x.size and x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    elif not x.size or x.ndim != 4 or x.shape[1] not in (1, 3):
        what = f"X has shape {x.shape}, not (N, H, W), (N, H, W, 3) or (N, 3, H, W), with N at least 1"
        raise ImageError(f"{what}. Reshape X; give image_shape for flat rows, X[None] for one image, paths in a list.")
    if x.dtype == np.uint8 and value_range is None:
        return np.ascontiguousarray(x)
    if x.dtype.kind not in "fiub":
        raise ImageError(f"X holds {x.dtype}. Make its pixels uint8, or numbers from 0 to 1.")
    x = x.astype(np.float32)
    if len(rows := np.unique(np.nonzero(~np.isfinite(x))[0])):
        raise ImageError(f"{len(rows)} rows of X contain NaN or infinity; the first is row {rows[0]}. Drop them.")
    slack = (high - low) * 1e-6  # rounding, as of an image that was resized
    if x.min() < low - slack or x.max() > high + slack:
        what = f"X has values from {x.min():g} to {x.max():g}, but {low:g} is black here and {high:g} white"
        raise ImageError(f"{what}. Scale X, make it uint8, or give value_range=(black, white).")
    return np.round((x - low) * (255 / (high - low))).astype(np.uint8)


def fold(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Flat rows (N, F) → images (N, C, H, W). Raises `ConfigError` for another shape than (H, W) or (C, H, W)."""
    if not isinstance(shape, tuple | list) or len(shape) not in (2, 3) or np.prod(shape) != x.shape[1]:
        raise ConfigError(f"image_shape is {shape!r}, for rows of {x.shape[1]} values. Give (H, W) or (C, H, W).")
    return x.reshape(len(x), *(shape if len(shape) == 3 else (1, *shape)))


def look_through(path: str | Path) -> list[Path]:
    """The image files of a folder and of its sub-folders, sorted; or the one file that is named. Raises `ImageError`
    where there is none. Files of other kinds are counted on standard error."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ImageError(f"There is no folder or image {path}. Correct the path.")
    files = visible_files(path)
    images, others = [file for file in files if is_image(file)], [file for file in files if not is_image(file)]
    if others:
        kinds = Counter((f.suffix.lower() or "without ending") if f.is_file() else "broken link" for f in others)
        counts = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())
        print(f"left out, of kinds that are not read: {counts}", file=sys.stderr)
    if not images:
        raise ImageError(f"There are no images in {path}: no files that end in {', '.join(SUFFIXES)}. Choose another.")
    return images


def from_paths(paths: Sequence[str | Path]) -> np.ndarray | Ragged:
    """Image files → uint8 images in colour. Raises `ImageError`, which names the first bad files."""
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(read, paths, repeat(LONGEST)))
    bad = [f"{path}: {image}" for path, image in zip(paths, images, strict=True) if isinstance(image, BadImage)]
    if bad:
        raise ImageError(f"{len(bad)} of {len(paths)} images are bad: {'; '.join(bad[:5])}. Leave them out.")
    return stacked(images)
