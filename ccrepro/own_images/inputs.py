"""Your own images, as arrays or as files → uint8 pixels.

Letters: N images, C channels, H, W sides, F values of a flat row.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccrepro.data.images import SUFFIXES, BadImage, Range, Source, is_image, joint_range, measure, read, visible_files
from ccrepro.errors import ConfigError, ImageError
from ccrepro.runs.streaming import in_channels
from ccrepro.runtime.ragged import Ragged, stacked
from ccrepro.runtime.storage import place

LONGEST = 448  # pixels to which the longer side of a file is reduced: twice the side of what a network takes
DARK = 32  # of 255: where no pixel of all images reaches it, something is wrong with them


def unwrapped(x: Any) -> Any:
    """What X is, told by its elements: a list of images of any kind, each alone (a path, a Pillow image, an array); or
    else an array, or a table or a sparse matrix of numbers, unchanged.

    x: a list, tuple, array, Series, table, torch tensor, or anything with elements, such as a torch Dataset, whose
    labels are left out. Raises `ImageError` for anything else.
    """
    if hasattr(x, "tocsr"):
        return x
    if isinstance(x, Source | Mapping):
        raise ImageError(f"X is a {type(x).__name__}. Give a list of images, even of one.")
    if hasattr(x, "iloc") and x.ndim == 2 and x.select_dtypes(["number", "bool"]).shape != x.shape:
        if x.shape[1] != 1:
            what = f"X is a table with the columns {', '.join(map(str, x.columns))}"
            raise ImageError(f"{what}. Give the one column that holds the images or their paths.")
        x = x.iloc[:, 0]
    if not hasattr(x, "iloc") and hasattr(x, "__array__"):
        x = _array(x)
    if _is_array(x) or (isinstance(x, np.ndarray) and x.dtype.kind in "biufc"):
        return x
    try:
        items = list(x) if isinstance(x, Iterable) else [x[i] for i in range(len(x))]
    except Exception as error:  # whatever a Dataset raises
        raise ImageError(f"X is a {type(x).__name__} that gives no images: {error!r}. Give a list of them.") from None
    items = [item[0] if _is_labelled(item) else item for item in items]
    if any(map(_is_image, items)):
        return items
    try:
        array = np.asarray(items)
    except ValueError:
        raise ImageError("The rows of X differ in length. Give images as arrays, or rows of one length.") from None
    if array.dtype == object:
        raise ImageError(f"The elements of X are {type(items[0]).__name__}. Give paths, Pillow's images or arrays.")
    return array


def _is_array(item: Any) -> bool:
    """Whether it has two axes or more; labels have fewer."""
    return getattr(item, "ndim", 0) > 1


def _is_image(item: Any) -> bool:
    return isinstance(item, Source) or _is_array(item)


def _is_labelled(item: Any) -> bool:
    """Whether this is a tuple or a list of an image and of what is none."""
    if not isinstance(item, tuple | list) or not item or not _is_image(item[0]):
        return False
    return not any(isinstance(more, Image.Image) or _is_array(more) for more in item[1:])


def _array(x: Any) -> np.ndarray:
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


def values_of(items: Sequence[Any]) -> Range | None:
    """`joint_range` of the deep files, and the deep images of Pillow, in a list of images of any kind."""
    with ThreadPoolExecutor() as pool:
        return joint_range(pool.map(_values, items))


def from_list(
    items: Sequence[Any], value_range: tuple[float, float] | None = None, values: Range | None = None
) -> np.ndarray | Ragged:
    """Images of any kind, each alone → uint8 images, in colour unless all are grey arrays.

    value_range: of arrays, as in `from_array`. values: of deep images, as in `as_seen`. Raises `ImageError` with the
    first bad images.
    """
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_pixels, items, repeat(value_range), repeat(values)))
    names = [item if isinstance(item, str | os.PathLike) else f"number {row}" for row, item in enumerate(items)]
    told = [f"{name}: {image}" for name, image in zip(names, images, strict=True) if isinstance(image, BadImage)]
    if told:
        raise ImageError(f"{len(told)} of {len(items)} images are bad: {'; '.join(told[:5])}. Leave them out.")
    channels = max(map(len, images))
    return stacked([in_channels(image[None], channels)[0] for image in images])


def _values(item: Any) -> Range | None:
    """The lowest and highest value of a deep file, or of a deep image of Pillow; None for anything else."""
    with suppress(BadImage):  # which is told when the pixels are read
        return measure(item).values if isinstance(item, Source) else None


def _pixels(item: Any, value_range: tuple[float, float] | None, values: Range | None) -> np.ndarray | BadImage:
    """One image of any kind → uint8 (C, H, W)."""
    if not _is_array(item):
        return read(item, LONGEST, values)
    try:
        array = _array(item)[None]
        return from_array(array[:, None] if array.ndim == 3 else array, value_range)[0]
    except ImageError as error:
        return BadImage(str(error).rstrip("."))


def too_dark(images: np.ndarray | Ragged) -> str:
    """A remark where no pixel is bright, as in masks of 0 and 1, or in 12 bits that were saved as 16; "" otherwise."""
    pixels = (images.pixels if isinstance(images, Ragged) else images).reshape(-1)
    parts = np.array_split(pixels, max(1, len(pixels) // 2**20))
    if any(part.max() >= DARK for part in parts):
        return ""
    return f"no pixel is brighter than {max(map(np.max, parts))} of 255; if that is white here, scale the images first"


def from_array(
    x: np.ndarray, value_range: tuple[float, float] | None = None, channels: int | None = None
) -> np.ndarray:
    """Pixels in any usual order → uint8 (N, C, H, W), C 1 or 3; if both ends could be channels, the first are taken.

    x: uint8, bool, or numbers in ``value_range``, which are rounded to 256 levels; None is (0, 1). channels: those of
    the fitted images, if any: only where they are grey, (3, H, W) is three images. Raises `ImageError` for another
    shape, and for values that are not finite or outside the range; `ConfigError` for a range that is none.
    """
    low, high = black_and_white(value_range or (0, 1))
    if x.size and x.ndim == 3 and x.shape[0] == 3 and channels != 1:
        raise ImageError(
            f"X has shape {x.shape}: one image in colour, or three grey ones? Give X[None], or X[:, None]."
        )
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


def black_and_white(value_range: Any) -> Range:
    """A parameter ``value_range`` as two numbers. Raises `ConfigError` for anything else."""
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low = high = 0.0
    if low >= high:
        raise ConfigError(f"value_range is {value_range!r}. Give two numbers, of black and white, the smaller first.")
    return low, high


def fold(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Flat rows (N, F) → images (N, C, H, W). Raises `ConfigError` for another shape than (H, W) or (C, H, W)."""
    if not isinstance(shape, tuple | list) or len(shape) not in (2, 3) or np.prod(shape) != x.shape[1]:
        raise ConfigError(f"image_shape is {shape!r}, for rows of {x.shape[1]} values. Give (H, W) or (C, H, W).")
    return x.reshape(len(x), *(shape if len(shape) == 3 else (1, *shape)))


def look_through(path: str | Path, skip_bad: bool = False) -> list[Path]:
    """The image files of a folder and of its sub-folders, sorted; or the one file that is named. Raises `ImageError`
    where there is none, and for a folder that cannot be listed unless bad ones are to be skipped. Files of other kinds,
    and folders that are skipped, are counted on standard error."""
    path, failed = place(path), []
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ImageError(f"There is no folder or image {path}. Check the path.")
    files = visible_files(path, failed.append)
    if failed and not skip_bad:
        what = f"Cannot list the folder {failed[0].filename}: {failed[0].strerror}"
        raise ImageError(f"{what}. Change its permissions; `cluster --skip-bad` leaves it out.")
    if failed:
        print(f"left out, folders that cannot be listed: {len(failed):,}", file=sys.stderr)
    images, others = [file for file in files if is_image(file)], [file for file in files if not is_image(file)]
    if others:
        kinds = Counter((f.suffix.lower() or "without ending") if f.is_file() else "broken link" for f in others)
        counts = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())
        print(f"left out, of kinds that are not read: {counts}", file=sys.stderr)
    if not images:
        raise ImageError(f"There are no images in {path}: no files that end in {', '.join(SUFFIXES)}. Choose another.")
    return images
