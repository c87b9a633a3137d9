"""Clusters to look through: one HTML page with all images."""

import os
import shutil
import urllib.parse
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from ccrepro.data import ImageSet
from ccrepro.runtime import storage

THUMB = 160  # side of the small images, in pixels


def write(out: Path, folder: Path, data: ImageSet, table: pd.DataFrame, agreement: float) -> Path:
    """Write ``index.html`` and its ``thumbs/`` into ``out``; returns the page. table: the path (below ``folder``),
    cluster and confidence of each image."""
    thumbs, made = out / "thumbs", out / "thumbs.partial"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for row, image in enumerate(data.images):
        middle_square(image, THUMB).save(made / f"{row:06d}.jpg", quality=85)
    shutil.rmtree(thumbs, ignore_errors=True)  # of earlier clusters
    os.replace(made, thumbs)
    base = os.path.relpath(folder.resolve(), out.resolve())
    urls = [urllib.parse.quote(os.fsencode(os.path.join(base, path))) for path in table.path]
    images = table.assign(url=urls, path=[*map(storage.readable, table.path)], row=[f"{i:06d}" for i in table.index])
    images = [*images.sort_values("confidence", ascending=False, kind="stable").itertuples()]
    loader = jinja2.PackageLoader("ccrepro.own_images", ".")
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("gallery.html.j2")
    page = template.render(name=storage.readable(folder.resolve().name), images=images, agreement=agreement)
    return storage.atomic_write(out / "index.html", page)


def middle_square(image: np.ndarray, side: int) -> Image.Image:
    """The middle square of an image, uint8 (3, H, W)."""
    kind = Image.Resampling.NEAREST if min(image.shape[1:]) <= 32 else Image.Resampling.LANCZOS
    return ImageOps.fit(Image.fromarray(image.transpose(1, 2, 0)), (side, side), kind)
