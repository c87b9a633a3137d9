"""A folder of your own images → clusters to look through: a CSV, a gallery, and the model.

Letters: N images, D instance dimension, K clusters.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ccrepro.baselines import kmeans
from ccrepro.config import Config
from ccrepro.data import ImageSet, cache
from ccrepro.data.readers import Files
from ccrepro.errors import CheckpointError, ConfigError
from ccrepro.metrics import scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.own_images import FEW, N_INIT, PHOTO, TOO_FEW, gallery, inputs, own_recipe, photos, sorting, usual_side
from ccrepro.own_images.estimator import view_agreement
from ccrepro.own_images.starts import agreement
from ccrepro.runs import pretrained, resume, streaming
from ccrepro.runs.checkpoints import Checkpoints
from ccrepro.runs.record import EpochLog, planned
from ccrepro.runs.weights import load_model, save_model
from ccrepro.runtime import storage
from ccrepro.runtime.device import choose_device
from ccrepro.runtime.ragged import Ragged

OF_EARLIER = (".training.lock", "packed.partial", "packed/index.json")  # `run` leaves one, or more


class Collection(NamedTuple):
    """The images of a folder: their paths, relative to it and in order, and their pixels. If every image lies in one of
    several sub-folders, these are the labels of ``data``, which are used for scores only."""

    folder: Path
    paths: tuple[str, ...]
    data: ImageSet


class Clusters(NamedTuple):
    """What was made of a collection. z: float32 (N, D) and p: float32 (N, K), the outputs of the model. kmeans: (N,),
    the clusters of k-means, on the pretrained features if there were any, otherwise on those learned here. agreement:
    `view_agreement`. more: facts of a pretrained network's starts, for the summary."""

    config: Config
    model: ContrastiveClusteringModel
    z: np.ndarray
    p: np.ndarray
    kmeans: np.ndarray
    agreement: float
    pretrained: dict[str, str]  # name and SHA-256 of the frozen network, if any
    more: dict[str, Any]

    @property
    def cluster(self) -> np.ndarray:
        """int64 (N,)."""
        return self.p.argmax(1)


def read(folder: str | Path, packed: Path, skip_bad: bool = False) -> Collection:
    """All images of a folder and its sub-folders, decoded once into the folder ``packed``. Raises `ImageError` where
    there is none, and `DataError` where some are bad, unless these are to be skipped."""
    folder = storage.place(folder)
    base = folder.parent if folder.is_file() else folder
    paths = inputs.look_through(folder, skip_bad)
    source, kept = Files(paths, *_classes(paths, base), inputs.LONGEST), packed / "rows.npy"
    known = cache.read(packed, cache.fingerprint(source)) if skip_bad or not kept.exists() else None
    data = known or cache.write(packed, source, skip_bad)
    if kept.exists():
        paths = [paths[row] for row in np.load(kept)]
    return Collection(base, tuple(str(path.relative_to(base)) for path in paths), data)


def _classes(paths: Sequence[Path], base: Path) -> tuple[np.ndarray | None, list[str]]:
    """The first sub-folder of each image, as labels and names; None where an image lies in none, or all in one."""
    tops = [path.relative_to(base).parts[0] if path.parent != base else None for path in paths]
    names = sorted({top for top in tops if top})
    if None in tops or len(names) < 2:
        return None, []
    return np.array([names.index(top) for top in tops], dtype=np.int64), names


def choose(images: np.ndarray | Ragged, from_scratch: bool = False, backbone: str = "") -> str:
    """The name of the pretrained network to take, or "" to train from scratch: unless one of both is asked for, small
    images are trained on from scratch."""
    if from_scratch or (not backbone and usual_side(images) < PHOTO):
        return ""
    return backbone or pretrained.PACKAGED[0]


def from_pretrained(
    collection: Collection,
    n_clusters: int | str,
    out: Path,
    network: photos.Network,
    n_init: int,
    fine_tune: int = 0,
    **settings: Any,
) -> Clusters:
    """Cluster a collection on the features of a pretrained network, as `photos.fit` does, and with ``fine_tune`` for so
    many epochs more as `photos.fine_tune` does. Features and starts stay in ``out``; what is there of the same images
    and settings is not made again."""
    data = collection.data
    print(f"{network.name}, pretrained, at {network.image_size}×{network.image_size} pixels on {network.device.type}")
    found = photos.fit(network, data.images, n_clusters, n_init, out, data.sha256, **settings)
    best, losses = found.starts[0], [round(start.loss, 4) for start in found.starts]
    lines = [{"start": rank, **epoch} for rank, start in enumerate(found.starts) for epoch in start.history]
    storage.atomic_write(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    more = {"starts": {"losses": losses, "agreement": round(agreement([s.clusters for s in found.starts]), 4)}}
    if found.silhouettes:
        more["silhouettes"] = {k: round(value, 4) for k, value in found.silhouettes.items()}
    z, p, views = best.z, best.p[0], agreement([p.argmax(1) for p in best.p[1:3]])
    if fine_tune:
        z, p, _ = photos.fine_tune(found.model, found.config, data, fine_tune, out / "training")
        views = view_agreement(found.model, found.config, data.images)
        more["fine_tuned"] = {"epochs": fine_tune, "agreement": round(agreement([best.clusters, p.argmax(1)]), 4)}
    return Clusters(found.config, found.model, z, p, found.kmeans, views, network.about, more)


def from_scratch(collection: Collection, n_clusters: int, out: Path, **settings: Any) -> Clusters:
    """Train on a collection and cluster it. A training that was stopped goes on from its checkpoints in ``out``; one
    that was saved there is not repeated. settings: of `Config`."""
    images = collection.data.images
    config = own_recipe(n_clusters, len(images), usual_side(images), **settings)
    model = _trained(collection.data, config, out)
    found = streaming.outputs(model, images, config)
    again = kmeans(found.z, config.n_clusters, config.seed)
    return Clusters(config, model, found.z, found.p, again, view_agreement(model, config, images), {}, {})


def _trained(data: ImageSet, config: Config, out: Path) -> ContrastiveClusteringModel:
    """The model that `save` wrote for the same images and settings, or else one that is trained now."""
    path = out / "model.safetensors"
    with suppress(CheckpointError):  # absent, or damaged
        saved, known, facts = load_model(path)
        if facts.get("images") == data.sha256 and not known.differences(config):
            print(f"trained before; remove {path} to train anew", flush=True)
            return saved.to(choose_device(config.device))
    print(f"from scratch: {planned(config)}", flush=True)
    log = EpochLog(out / "training/log.jsonl", f"K={config.n_clusters}", config.epochs)
    report, checkpoints = lambda epoch, _: log.write(epoch), Checkpoints(out / "training")
    model, _ = resume.fit(config, data, report, checkpoints)
    os.replace(out / "training/log.jsonl", out / "log.jsonl")
    return model


def table(collection: Collection, found: Clusters) -> pd.DataFrame:
    """path, cluster, confidence: one row per image, in the order of the paths."""
    paths = [storage.readable(path) for path in collection.paths]
    return pd.DataFrame({"path": paths, "cluster": found.cluster, "confidence": found.p.max(1).round(4)})


def save(collection: Collection, found: Clusters, out: Path) -> str:
    """Write clusters.csv, summary.json, the gallery and model.safetensors into a folder and remove its checkpoints;
    returns the summary in words."""
    each, data, config = table(collection, found), collection.data, found.config
    facts = {
        "images": len(found.p),
        "sizes": np.bincount(found.cluster, minlength=config.n_clusters).tolist(),
        "agreement_of_views": round(found.agreement, 4),
        "kmeans_on": "pretrained features" if found.pretrained else "features learned here",
        "agreement_with_kmeans": round(agreement([found.cluster, found.kmeans]), 4),
        **found.more,
    }
    if data.labels is not None:
        facts |= {"scores": scores(data.labels, found.cluster), "scores_kmeans": scores(data.labels, found.kmeans)}
    # Quoted, since a name may hold what ends a line elsewhere, and csv knows only the end that it writes.
    storage.atomic_write(out / "clusters.csv", each.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))
    storage.atomic_write(out / "summary.json", json.dumps(facts, indent=1) + "\n")
    if curve := facts.get("silhouettes"):
        gallery.silhouette_curve(curve).savefig(png := io.BytesIO(), format="png", dpi=160)
        storage.atomic_write(out / "silhouettes.png", png.getvalue())
    named, notes = each.assign(path=pd.Series(collection.paths, dtype=object)), _notes(facts)  # not all need be UTF-8
    gallery.write(out, collection.folder, data, named, found.z, notes)
    about = {"images": data.sha256, "values": data.values, "pretrained": found.pretrained}
    save_model(found.model, config, out / "model.safetensors", **about)
    shutil.rmtree(out / "training", ignore_errors=True)
    few = not found.pretrained and len(found.p) < FEW and usual_side(data.images) >= PHOTO
    return "\n".join([_sizes(facts), *notes, *_scored(facts), *[f"note: {TOO_FEW}"] * few])


def _sizes(facts: dict[str, Any]) -> str:
    sizes = [n for n in facts["sizes"] if n]
    return f"{facts['images']:,} images in {len(sizes)} clusters of {min(sizes):,} to {max(sizes):,}"


def _notes(facts: dict[str, Any]) -> list[str]:
    """How sure the clusters are, a line each."""
    lines = [
        f"Agreement of two augmented views: {facts['agreement_of_views']:.2f} (1 always, 0 by chance)",
        f"Agreement with k-means on the {facts['kmeans_on']}: {facts['agreement_with_kmeans']:.2f}",
    ]
    if (starts := facts.get("starts")) and len(starts["losses"]) > 1:
        low, high = (f"{loss:.3f}" for loss in (starts["losses"][0], starts["losses"][-1]))
        lines.append(f"Agreement of {len(starts['losses'])} starts: {starts['agreement']:.2f}")
        lines.append(f"Cluster loss of the starts: {low} to {high}; the one of {low} was kept")
    if tuned := facts.get("fine_tuned"):
        lines.append(f"Agreement of that start before and after fine-tuning: {tuned['agreement']:.2f}")
    if curve := facts.get("silhouettes"):
        best = sorted(curve, key=curve.__getitem__, reverse=True)[:3]
        near = ", ".join(f"{curve[k]:.3f} with {k}" for k in best)
        lines.append(f"Silhouette of k-means with 2 to {max(curve)} clusters: the largest are {near}")
    return lines


def _scored(facts: dict[str, Any]) -> list[str]:
    lines = []
    for name, key in (("CC", "scores"), (f"k-means on the {facts['kmeans_on']}", "scores_kmeans")):
        values = "  ".join(f"{metric.upper()} {value:.3f}" for metric, value in facts.get(key, {}).items())
        lines += [f"against the sub-folders' names, {name}: {values}"] if values else []
    return lines


def run(
    folder: str,
    n_clusters: int | str,
    out: str | Path = "",
    skip_bad: bool = False,
    *,
    scratch: bool = False,
    backbone: str = "",
    weights: str = "",
    n_init: int = N_INIT,
    fine_tune: int = 0,
    move_into: str = "",
    settings: dict[str, Any],
) -> None:
    """Cluster a folder into ``out``, or else into NAME-clusters in the current folder. Raises `LockedError` if another
    process writes there."""
    out = storage.place(out or f"{storage.place(folder).resolve().name}-clusters")
    check_out(folder, out)
    target = sorting.new_target(folder, move_into) if move_into else None
    if backbone:
        pretrained.facts(backbone)  # a mistake is told before the images are read
    with storage.lock(out / "training"):
        collection = read(folder, out / "packed", skip_bad)
        print(collection.data, flush=True)
        if remark := inputs.too_dark(collection.data.images):
            print(f"note: {remark}", flush=True)
        pretrained_only = {"--n-clusters auto": n_clusters == "auto", "--weights": weights, "--fine-tune": fine_tune}
        if name := choose(collection.data.images, scratch, backbone):
            network = photos.Network(name, weights, settings.get("image_size", 0), settings.get("device", "auto"))
            found = from_pretrained(collection, n_clusters, out, network, n_init, fine_tune, **settings)
        elif wrong := [option for option, given in pretrained_only.items() if given]:
            raise ConfigError(f"{wrong[0]} is for a pretrained network. Leave it out, or give --backbone.")
        else:
            found = from_scratch(collection, n_clusters, out, **settings)
        said = save(collection, found, out)
    print(f"{said}\n-> {out / 'clusters.csv'}, {out / 'index.html'}")
    if target:
        for path, cluster in zip(collection.paths, found.cluster, strict=True):
            sorting.sort(collection.folder / path, target, cluster, path)
        print(f"-> {target}: a folder of images for each cluster")


def check_out(folder: str | Path, out: Path) -> None:
    """Raise `ConfigError` if what is written could be taken for images, or could replace files of others."""
    sorting.check_apart(folder, out)
    if storage.listing(out, "*") and not any((out / name).exists() for name in OF_EARLIER):
        raise ConfigError(f"{out} holds other files. Choose an empty folder, or a new one.")
