"""Clusters to look through: a contact sheet for each, and one HTML page with all pictures."""

import io
import os
import shutil
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ccrepro import files

if TYPE_CHECKING:
    from ccrepro.collection import Clusters, Collection

TILE, COLUMNS, ROWS = 128, 8, 6  # of a contact sheet, in pixels and pictures
GAP, HEAD = 4, 40
THUMB = 160  # side of the gallery's small pictures


def write(collection: "Collection", found: "Clusters", out: Path, reason: str = "") -> Path:
    """Write ``index.html`` with ``thumbs/``, and ``sheets/cluster-NN.png``, into a folder; returns the page.

    ``reason``: why this number of clusters was suggested, where a sweep chose it.
    """
    for stale in ("sheets", "thumbs"):  # of earlier clusters
        shutil.rmtree(out / stale, ignore_errors=True)
    order = np.lexsort((-found.confidence, found.cluster))  # by cluster, surest first
    groups = [order[found.cluster[order] == k] for k in range(found.config.n_clusters)]
    for k, rows in enumerate(groups):
        if len(rows):
            shown, buffer = rows[: COLUMNS * ROWS], io.BytesIO()
            drawn = sheet(collection.data.images[shown], collection.data.sizes[shown], _title(k, rows, found))
            drawn.save(buffer, "PNG")
            files.atomic_write(sheet_path(out, k), buffer.getvalue())
    (out / "thumbs").mkdir(exist_ok=True)
    for row, (image, size) in enumerate(zip(collection.data.images, collection.data.sizes, strict=True)):
        _picture(image, size, THUMB).save(out / "thumbs" / f"{row:06d}.jpg", quality=85)
    return files.atomic_write(out / "index.html", _page(collection, found, groups, out, reason))


def sheet_path(out: Path, cluster: int) -> Path:
    return out / "sheets" / f"cluster-{cluster:02d}.png"


def sheet(images: np.ndarray, sizes: np.ndarray, title: str) -> Image.Image:
    """A page of pictures, uint8 (N, C, S, S) of own heights and widths (N, 2), row by row under a title."""
    rows = -(-len(images) // COLUMNS)
    step = TILE + GAP
    page = Image.new("RGB", (COLUMNS * step + GAP, HEAD + rows * step + GAP), "white")
    ImageDraw.Draw(page).text((GAP + 4, 9), title, "black", ImageFont.load_default(20))
    for i, (image, size) in enumerate(zip(images, sizes, strict=True)):
        page.paste(_picture(image, size, TILE), (GAP + i % COLUMNS * step, HEAD + i // COLUMNS * step))
    return page


def _picture(image: np.ndarray, size: np.ndarray, side: int) -> Image.Image:
    """The middle square of a picture, out of the square that it was squeezed to."""
    pixels = image.repeat(3, 0) if len(image) == 1 else image
    kind = Image.Resampling.NEAREST if image.shape[2] <= 32 else Image.Resampling.LANCZOS
    height, width = np.minimum(size.min() / size, 1) * image.shape[2]  # of the middle square, in squeezed pixels
    left, top = (image.shape[2] - width) / 2, (image.shape[2] - height) / 2
    box = (left, top, left + width, top + height)
    return Image.fromarray(pixels.transpose(1, 2, 0)).resize((side, side), kind, box=box)


def _title(cluster: int, rows: np.ndarray, found: "Clusters") -> str:
    shown = min(len(rows), COLUMNS * ROWS)
    which = "all of them" if shown == len(rows) else f"the {shown} surest"
    return (
        f"cluster {cluster}: {len(rows):,} pictures, {which}; median confidence {np.median(found.confidence[rows]):.2f}"
    )


def _page(collection: "Collection", found: "Clusters", groups: list[np.ndarray], out: Path, reason: str) -> str:
    environment = jinja2.Environment(loader=jinja2.PackageLoader("ccrepro", "."), autoescape=True, trim_blocks=True)
    base = os.path.relpath(collection.folder.resolve(), out.resolve())
    clusters = [
        {
            "number": k,
            "median": float(np.median(found.confidence[rows])),
            "pictures": [
                {
                    "row": f"{row:06d}",
                    "path": files.readable(collection.paths[row]),
                    "url": urllib.parse.quote(os.fsencode(os.path.join(base, collection.paths[row]))),
                    "confidence": float(found.confidence[row]),
                }
                for row in rows
            ],
        }
        for k, rows in enumerate(groups)
        if len(rows)
    ]
    name = files.readable(collection.folder.resolve().name)
    return environment.get_template("gallery.html.j2").render(
        name=name,
        clusters=clusters,
        n_clusters=found.config.n_clusters,
        total=len(found.cluster),
        agreement=found.agreement,
        reason=reason,
    )
