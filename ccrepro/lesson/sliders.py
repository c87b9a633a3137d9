"""A figure with sliders in a live notebook, and the same figure as an image where no kernel runs."""

import io
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure


class Sliders(widgets.VBox):
    """Sliders, each (smallest, largest, step, start), above the figure that ``draw`` makes of arguments and sliders."""

    def __init__(self, draw: Callable[..., Figure], *arguments: Any, **ranges: tuple[float, float, float, float]):
        self.draw, self.arguments, self.image = draw, arguments, widgets.Image(format="png")
        self.controls = {
            name: widgets.FloatSlider(
                value=start, min=low, max=high, step=step, description=name.replace("_", " "), continuous_update=False,
                style={"description_width": "10em"}, layout={"width": "34em"},
            )
            for name, (low, high, step, start) in ranges.items()
        }  # fmt: skip
        # The image keeps its own size: stretched to the page, a narrow figure is a blur.
        super().__init__([*self.controls.values(), self.image], layout={"align_items": "flex-start"})
        self._redraw()
        for control in self.controls.values():
            control.observe(self._redraw, names="value")

    def _redraw(self, change: Any = None) -> None:
        values, buffer = {name: control.value for name, control in self.controls.items()}, io.BytesIO()
        drawn = self.draw(*self.arguments, **values)
        drawn.savefig(buffer, format="png", dpi=drawn.dpi, metadata={"Software": None})
        self.image.value = buffer.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        live = super()._repr_mimebundle_(**kwargs)
        return {**live, "image/png": b64encode(self.image.value).decode(), "text/plain": "figure with sliders"}
