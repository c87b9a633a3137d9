"""The house style: what all figures of the lesson and of the reproduction have in common."""

import functools
import io
from collections.abc import Callable
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
    "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
}
COLORS = sns.color_palette("colorblind")


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Give a plotting function the house style, and keep pyplot from showing its figure a second time."""

    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with plt.rc_context(STYLE):
            result = draw(*args, **kwargs)
            result.canvas.draw()  # lay out while the style holds
        plt.close(result)
        return result

    return styled


def small_png(png: bytes) -> bytes:
    """A PNG in 256 colours, a third of the size: GitHub shows no notebooks of many megabytes."""
    image, buffer = Image.open(io.BytesIO(png)), io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def draw_image(axis: plt.Axes, image: np.ndarray) -> None:
    """Show a float (C, S, S) image in [0, 1] without ticks."""
    axis.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
