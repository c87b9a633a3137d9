"""Clusters to look through and to correct by hand: one HTML page that holds all it needs.

Letters: N images, D features, S images that the page shows.
"""

import base64
import hashlib
import io
import os
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from tqdm.std import tqdm

from ccrepro.data import ImageSet
from ccrepro.drawing import COLORS, figure, panels
from ccrepro.runtime import storage

THUMB = 120  # the longer side of the small images, in pixels
SHOWN = 10_000  # images in the page, at most: a browser stays quick with these
LISTED = 100_000  # rows of the CSV that the page makes, at most
FEW = 10  # with fewer images there are no neighbours to speak of
MANY = 1_000  # with more images it takes long enough for a progress bar


def write(out: Path, folder: Path, data: ImageSet, table: pd.DataFrame, z: np.ndarray, notes: Sequence[str]) -> Path:
    """Write ``index.html`` into ``out``; returns its path.

    table: path (below ``folder``), cluster and confidence of each image. z: float32 (N, D), unit rows: the features
    that tell what is typical of a cluster, and what lies where in the map. notes: short sentences for the header.
    """
    table = table.reset_index(drop=True)
    typical = typicality(z, table.cluster.to_numpy())
    shown = chosen(table, typical)
    others = np.setdiff1d(np.arange(len(table)), shown)
    listed = np.sort(np.concatenate((shown, others[: LISTED - len(shown)])))
    paths, base = [*map(storage.readable, table.path[listed])], os.path.relpath(folder.resolve(), out.resolve())
    x, y = layout(z[shown]).round(4).T.tolist()
    sizes = table.cluster.value_counts()
    facts = {
        "folder": storage.readable(folder.resolve().name),
        "notes": [*notes],
        "images": len(table),
        "clusters": sorted(((int(k), int(n)) for k, n in sizes.items()), key=lambda entry: (-entry[1], entry[0])),
        "path": paths,
        "cluster": table.cluster[listed].tolist(),
        "confidence": table.confidence[listed].astype(float).round(4).tolist(),
        "shown": np.searchsorted(listed, shown).tolist(),  # those of the rows above that the rest is about
        "url": [urllib.parse.quote(os.fsencode(os.path.join(base, path))) for path in table.path[shown]],
        "typical": typical[shown].astype(float).round(4).tolist(),
        "x": x,
        "y": y,
        "thumb": _thumbnails(data, shown),
    }
    # The browser keeps what is changed by hand under this name, so that it is not applied to other clusters.
    facts["id"] = hashlib.sha256(repr((paths, facts["cluster"])).encode()).hexdigest()[:16]
    loader = jinja2.PackageLoader("ccrepro.own_images", ".")
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("gallery.html.j2")
    return storage.atomic_write(out / "index.html", template.render(data=facts))


def typicality(z: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """The cosine of each image with the mean of its cluster: z (N, D), cluster (N,) → (N,)."""
    found = np.empty(len(z), np.float32)
    for k in np.unique(cluster):
        rows = cluster == k
        mean = z[rows].mean(0)
        found[rows] = z[rows] @ mean / max(np.linalg.norm(mean), 1e-12)
    return found


def chosen(table: pd.DataFrame, typical: np.ndarray) -> np.ndarray:
    """The sorted rows that the page shows: all, or of each cluster as many that are typical as are unsure.
    typical: (N,) → (S,)."""
    typical_first = (-pd.Series(typical)).groupby(table.cluster).rank(method="first")
    unsure_first = table.confidence.groupby(table.cluster).rank(method="first")
    return np.sort(np.argsort(np.minimum(typical_first, unsure_first), kind="stable")[:SHOWN])


def layout(z: np.ndarray) -> np.ndarray:
    """Where images lie in the map, those that are alike near each other: z (S, D) → (S, 2) within 0 and 1."""
    if len(z) < FEW:
        u, s, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
        points = np.pad(u * s, ((0, 0), (0, 2)))[:, :2]
    else:
        from openTSNE import TSNE  # late: takes two seconds

        how = {"perplexity": min(30, (len(z) - 1) / 3), "negative_gradient_method": "fft" if len(z) > 5000 else "bh"}
        with tqdm(desc="map", total=750, unit=" steps", mininterval=1, disable=len(z) <= MANY) as bar:
            # One job: several cores wait for each other longer than they save.
            points = TSNE(**how, random_state=0, n_jobs=1, callbacks=lambda *_: bar.update(50)).fit(z)
    low, high = np.min(points, 0), np.max(points, 0)
    return 0.5 + (np.asarray(points) - (low + high) / 2) / max((high - low).max(), 1e-12)


def _thumbnails(data: ImageSet, rows: np.ndarray) -> list[str]:
    """The small images in base64."""
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda row: base64.b64encode(thumbnail(data.images[row])).decode(), rows)
        return [*tqdm(made, "thumbnails", len(rows), unit=" images", mininterval=1, disable=len(rows) <= MANY)]


def thumbnail(image: np.ndarray) -> bytes:
    """A small WebP of an image, uint8 (3, H, W), in its proportions. Of tiny ones, each pixel becomes a square."""
    small, longest = Image.fromarray(image.transpose(1, 2, 0)), max(image.shape[1:])
    if tiny := longest <= THUMB // 2:
        small = small.resize([side * (THUMB // longest) for side in small.size], Image.Resampling.NEAREST)
    small.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    small.save(buffer := io.BytesIO(), "WEBP", quality=60, lossless=tiny)
    return buffer.getvalue()


@figure
def silhouette_curve(found: dict[int, float]) -> Figure:
    """The silhouette of each number of clusters, with the largest marked."""
    drawn, axis = panels("How many clusters?", 1, 1, figsize=(6, 3.2))
    best = max(found, key=found.__getitem__)
    axis.plot(*zip(*found.items(), strict=True), marker=".", color=COLORS[0])
    axis.plot(best, found[best], marker="o", color=COLORS[3])
    axis.annotate(f"{best} ({found[best]:.3f})", (best, found[best]), (6, 4), textcoords="offset points")
    axis.set(xlabel="number of clusters", ylabel="silhouette of k-means")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(y=0.15)
    return drawn
