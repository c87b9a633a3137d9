"""A figure with sliders in a live notebook, and the same figure as a picture wherever nobody can move them."""

import io
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

Slider = tuple[float, float, float, float]  # smallest, largest, step, start


class Sliders:
    """Sliders above the figure that ``draw`` makes of their values.

    Its output holds both: the widgets, and the figure at the start as PNG, which papermill's copies, GitHub and HTML
    show. draw: a pure function, called with ``arguments`` and one number per slider, by name.
    """

    def __init__(self, draw: Callable[..., Figure], *arguments: Any, **ranges: Slider):
        self.draw, self.arguments = draw, arguments
        self.controls = {name: _slider(name, *values) for name, values in ranges.items()}
        self.picture = widgets.Image(value=self._png(), format="png")
        self.box = widgets.VBox([*self.controls.values(), self.picture])
        for control in self.controls.values():
            control.observe(self._redraw, names="value")

    def values(self) -> dict[str, float]:
        return {name: control.value for name, control in self.controls.items()}

    def _png(self) -> bytes:
        drawn, buffer = self.draw(*self.arguments, **self.values()), io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=drawn.dpi, metadata={"Software": None})
        return buffer.getvalue()

    def _redraw(self, change: Any) -> None:
        self.picture.value = self._png()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        live = self.box._repr_mimebundle_(**kwargs)
        return {**live, "image/png": b64encode(self.picture.value).decode(), "text/plain": "figure with sliders"}


def _slider(name: str, low: float, high: float, step: float, start: float) -> widgets.FloatSlider:
    return widgets.FloatSlider(
        value=start, min=low, max=high, step=step, description=name.replace("_", " "), continuous_update=False,
        style={"description_width": "10em"}, layout={"width": "34em"},
    )  # fmt: skip
