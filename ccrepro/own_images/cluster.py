"""A folder of your own images → clusters to look through: a CSV, a gallery, and the model.

Letters: N images, K clusters.
"""

import csv
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score

from ccrepro.baselines import kmeans
from ccrepro.config import Config
from ccrepro.data import ImageSet, cache
from ccrepro.data.readers import Files
from ccrepro.errors import CheckpointError, ConfigError
from ccrepro.metrics import scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.own_images import gallery, inputs, own_recipe, usual_side
from ccrepro.own_images.estimator import view_agreement
from ccrepro.own_images.pretrained import start
from ccrepro.runs import resume, streaming
from ccrepro.runs.checkpoints import Checkpoints
from ccrepro.runs.record import EpochLog
from ccrepro.runs.weights import load_model, save_model
from ccrepro.runtime import storage
from ccrepro.runtime.device import choose_device

FEW = 1_000  # with fewer images, training from scratch is likely to lose against a pretrained start
OF_EARLIER = (".training.lock", "packed.partial", "packed/index.json")  # `run` leaves one, or more


class Collection(NamedTuple):
    """The images of a folder: their paths, relative to it and in order, and their pixels. If every image lies in one of
    several sub-folders, these are the labels of ``data``, which are used for scores only."""

    folder: Path
    paths: tuple[str, ...]
    data: ImageSet


class Clusters(NamedTuple):
    """What training made of a collection. cluster, confidence: (N,). kmeans: (N,), the clusters of k-means, on the
    pretrained features if there were any, otherwise on those learned here."""

    config: Config
    pretrained: str  # the source of the backbone's first weights, as `pretrained.start` takes it, or ""
    model: ContrastiveClusteringModel
    cluster: np.ndarray
    confidence: np.ndarray
    kmeans: np.ndarray
    agreement: float  # `view_agreement`


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


def cluster(collection: Collection, n_clusters: int, out: Path, pretrained: str = "", **settings: Any) -> Clusters:
    """Train on a collection and cluster it. A training that was stopped goes on from its checkpoints in ``out``; one
    that was saved there is not repeated. pretrained: as `pretrained.start` takes it. settings: of `Config`."""
    images, model, before = collection.data.images, None, None
    config = own_recipe(n_clusters, len(images), usual_side(images), bool(pretrained), **settings)
    if pretrained:
        model = start(config, collection.data.channels, pretrained).to(choose_device(config.device))
        before = streaming.outputs(model, images, config).h
    model = _trained(collection.data, config, pretrained, model, out)
    found = streaming.outputs(model, images, config)
    again = kmeans(found.z if before is None else before, config.n_clusters, config.seed)
    agreement = view_agreement(model, config, images)
    return Clusters(config, pretrained, model, found.p.argmax(1), found.p.max(1), again, agreement)


def _trained(
    data: ImageSet, config: Config, pretrained: str, model: ContrastiveClusteringModel | None, out: Path
) -> ContrastiveClusteringModel:
    """The model that `save` wrote for the same images, start and settings, or else one that is trained now."""
    path, side, device = out / "model.safetensors", config.image_size, choose_device(config.device)
    with suppress(CheckpointError):  # absent, or damaged
        saved, known, facts = load_model(path)
        same = (facts.get("images"), facts.get("pretrained")) == (data.sha256, pretrained)
        if same and not known.differences(config):
            print(f"trained before; remove {path} to train anew", flush=True)
            return saved.to(device)
    network = f"network {config.backbone}{' from ImageNet' if model else ''}"
    what = f"{network}, batches of {config.batch_size} views of {side}×{side} pixels, {config.epochs} epochs"
    print(f"{what} on {device.type}", flush=True)
    log = EpochLog(out / "training/log.jsonl", f"K={config.n_clusters}", config.epochs)
    report, checkpoints = lambda epoch, _: log.write(epoch), Checkpoints(out / "training")
    return resume.fit(config, data, report, checkpoints, model=model)[0]


def table(collection: Collection, found: Clusters) -> pd.DataFrame:
    """path, cluster, confidence: one row per image, in the order of the paths."""
    paths = [storage.readable(path) for path in collection.paths]
    return pd.DataFrame({"path": paths, "cluster": found.cluster, "confidence": found.confidence.round(4)})


def save(collection: Collection, found: Clusters, out: Path) -> str:
    """Write clusters.csv, summary.json, the gallery and model.safetensors into a folder and remove its checkpoints;
    returns the summary in words."""
    each, data = table(collection, found), collection.data
    facts = {
        "images": len(found.cluster),
        "sizes": np.bincount(found.cluster, minlength=found.config.n_clusters).tolist(),
        "agreement_of_views": round(found.agreement, 4),
        "kmeans_on": "pretrained features" if found.pretrained else "features learned here",
        "agreement_with_kmeans": round(float(adjusted_mutual_info_score(found.cluster, found.kmeans)), 4),
    }
    if data.labels is not None:
        facts |= {"scores": scores(data.labels, found.cluster), "scores_kmeans": scores(data.labels, found.kmeans)}
    # Quoted, since a name may hold what ends a line elsewhere, and csv knows only the end that it writes.
    storage.atomic_write(out / "clusters.csv", each.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))
    storage.atomic_write(out / "summary.json", json.dumps(facts, indent=1) + "\n")
    named = each.assign(path=pd.Series(collection.paths, dtype=object))  # not all need be UTF-8
    gallery.write(out, collection.folder, data, named, found.agreement)
    about = {"images": data.sha256, "pretrained": found.pretrained, "values": data.values}
    save_model(found.model, found.config, out / "model.safetensors", **about)
    with suppress(FileNotFoundError):  # where nothing was trained
        os.replace(out / "training/log.jsonl", out / "log.jsonl")
    shutil.rmtree(out / "training", ignore_errors=True)
    return _described(facts)


def _described(facts: dict[str, Any]) -> str:
    sizes, kmeans_on = [n for n in facts["sizes"] if n], f"k-means on the {facts['kmeans_on']}"
    lines = [
        f"{facts['images']:,} images in {len(sizes)} clusters of {min(sizes):,} to {max(sizes):,}",
        f"clusters of two augmented views agree: {facts['agreement_of_views']:.2f} (1 always, 0 by chance)",
        f"agreement with {kmeans_on}: {facts['agreement_with_kmeans']:.2f}",
    ]
    for name, key in (("CC", "scores"), (kmeans_on, "scores_kmeans")):
        values = "  ".join(f"{metric.upper()} {value:.3f}" for metric, value in facts.get(key, {}).items())
        lines += [f"against the sub-folders' names, {name}: {values}"] if values else []
    if facts["images"] < FEW and facts["kmeans_on"] != "pretrained features":
        lines.append(f"note: fewer than {FEW:,} images are few to learn from; --pretrained starts from ImageNet")
    return "\n".join(lines)


def run(
    folder: str, n_clusters: int, out: str | Path, skip_bad: bool, pretrained: str, settings: dict[str, Any]
) -> None:
    """Cluster a folder into ``out``. Raises `LockedError` if another process writes there."""
    out = storage.place(out)
    check_out(folder, out)
    with storage.lock(out / "training"):
        collection = read(folder, out / "packed", skip_bad)
        print(collection.data, flush=True)
        if remark := inputs.too_dark(collection.data.images):
            print(f"note: {remark}", flush=True)
        found = cluster(collection, n_clusters, out, pretrained, **settings)
        said = save(collection, found, out)
    print(f"{said}\n-> {out / 'clusters.csv'}, {out / 'index.html'}")


def check_out(folder: str | Path, out: Path) -> None:
    """Raise `ConfigError` if what is written could be taken for images, or could replace files of others."""
    images, place = storage.place(folder).resolve(), out.resolve()
    if place.is_relative_to(images) or images.is_relative_to(place):
        raise ConfigError(f"Of {folder} and {out}, one lies in the other. Choose a folder for the results elsewhere.")
    if storage.listing(out, "*") and not any((out / name).exists() for name in OF_EARLIER):
        raise ConfigError(f"{out} holds files of others. Choose an empty folder, or a new one.")
