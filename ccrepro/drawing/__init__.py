"""What all figures of the lesson and of the reproduction share: the style, and ways to draw images."""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

STYLE = {
    **sns.axes_style("whitegrid"),
    "figure.dpi": 110,
    "figure.facecolor": "white",  # figures keep a light ground, so they read on dark pages too
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
}
COLORS = sns.color_palette("colorblind")
POSITIVE, NEGATIVE = COLORS[3], COLORS[0]  # pairs. Orange: what attracts; blue: what repels


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure | None]:
    """Give a plotting function the house style, and keep pyplot from showing its figure a second time. There is none
    where the first argument is an empty list of records, or where the function returns None."""

    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure | None:
        empty = args and isinstance(args[0], list) and not args[0]
        with plt.rc_context(STYLE):
            result = None if empty else draw(*args, **kwargs)
            if result is not None:
                result.canvas.draw()  # lay out while the style holds
                plt.close(result)
        return result

    return styled


def small_png(png: bytes) -> bytes:
    """A PNG in 256 colours, a third of the size: GitHub shows no notebooks of many megabytes."""
    image, buffer = Image.open(io.BytesIO(png)), io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def panels(title: str, rows: int, columns: int, **more: Any) -> tuple[Figure, Any]:
    """Rows × columns of axes under a common title; ``more`` goes to `plt.subplots`."""
    result, axes = plt.subplots(rows, columns, **more)
    result.suptitle(title)
    return result, axes


def draw_image(axis: plt.Axes, image: np.ndarray) -> None:
    """Show a float (C, H, W) image in [0, 1] without ticks."""
    axis.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def image_rows(title: str, rows: Sequence[tuple[str, Sequence[np.ndarray]]], n: int, size: float) -> tuple[Figure, Any]:
    """At most n float (C, H, W) images in each row, ``size`` inches wide, with the row's name on the left."""
    result, axes = panels(title, len(rows), n, figsize=(size * n + 1.2, size * len(rows) + 0.5), squeeze=False)
    for row, (name, images) in zip(axes, rows, strict=True):
        for axis, image in zip(row, images, strict=False):
            draw_image(axis, image)
        plt.setp(row[len(images) :], visible=False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return result, axes
