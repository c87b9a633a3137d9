"""A trained model on a stream: assignments image by image (§3.4), beside k-means refitted on all seen so far; and
training on batches that are seen once.

Letters: N images, K clusters.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccrepro import files
from ccrepro.baselines import kmeans
from ccrepro.checkpoint import load_weights
from ccrepro.config import Config
from ccrepro.datasets import ImageSet, as_tensor
from ccrepro.errors import DataError
from ccrepro.evaluate import represent
from ccrepro.machine import choose_device, resolve
from ccrepro.metrics import accuracy, scores
from ccrepro.model import ContrastiveClusteringModel, build
from ccrepro.run import hardware, run_folder, versions
from ccrepro.train import pairs, start, step

ARRIVING = (1, 8, 64, 512)  # images that arrive at once
POINTS = 10  # times that the stream is scored
STEPS = (1, 20)  # on each batch that is seen once


def measure(
    config: Config, data: ImageSet, runs_dir: str | Path = "runs", results_dir: str | Path = "results"
) -> dict[str, Any]:
    """What a finished run of the full method does on a stream of its images, in random order.

    Writes ``online.json`` into the run's folder, and for a recipe without overrides ``results/online/<cell>.json``:
    ``assign`` (`assign`), ``stream`` (`follow`) and ``once`` (`train_once`, by steps per batch). Raises `DataError`
    where the run has no weights.
    """
    folder = run_folder(config, runs_dir)
    model = _trained(config, data, folder)
    order = np.random.default_rng(config.seed).permutation(len(data.images))
    stream = dataclasses.replace(data, images=data.images[order], sizes=data.sizes[order], labels=data.labels[order])
    result = {
        **{name: getattr(config, name) for name in ("dataset", "profile", "variant", "seed")},
        "commit": files.commit(),
        "hardware": hardware(model),
        "versions": versions(),
        "assign": assign(config, stream, model),
        "stream": follow(config, stream, model),
        "once": {str(steps): train_once(config, stream, steps)[1] for steps in STEPS},
    }
    text = json.dumps(result, indent=1) + "\n"
    if not config.overrides():
        files.atomic_write(files.ROOT / results_dir / "online" / f"{config.cell}.json", text)
    files.atomic_write(folder / "online.json", text)
    return result


def _trained(config: Config, data: ImageSet, folder: Path) -> ContrastiveClusteringModel:
    if not (folder / "model.safetensors").exists():
        fix = "Train it first, with make reproduce or python -m ccrepro train"
        raise DataError("no weights of this run", str(folder), "A finished run keeps model.safetensors", fix)
    torch.set_num_threads(config.threads)
    model = build(config, data.images.shape[1]).to(choose_device(config))
    load_weights(model, folder / "model.safetensors")
    return model.eval()


def assign(config: Config, stream: ImageSet, model: ContrastiveClusteringModel, most: int = 1000) -> dict[str, list]:
    """The first ``most`` images of a stream, clustered as they arrive, for several numbers that arrive at once:
    ``batch_size``, ``same`` (share whose cluster is that of all images in one go), ``milliseconds`` (median of the
    time from arrival to assignment) and ``images_per_second``."""
    images = as_tensor(stream.images[:most])
    offline = represent(model, images, config.image_size)[1].argmax(1)
    lines = []
    for size in ARRIVING:
        clusters, seconds = zip(*_arrivals(config, model, images, size), strict=True)
        same = float(np.mean(np.concatenate(clusters) == offline))
        rate = len(images) / sum(seconds)
        lines.append((size, same, round(1000 * float(np.median(seconds)), 3), round(rate, 1)))
    names = ("batch_size", "same", "milliseconds", "images_per_second")
    return dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))


def _arrivals(
    config: Config, model: ContrastiveClusteringModel, images: Tensor, size: int
) -> Iterator[tuple[np.ndarray, float]]:
    """Clusters of each arrival, and the seconds it took."""
    represent(model, images[:size], config.image_size)  # the first call is slower
    for batch in images.split(size):
        start = time.perf_counter()
        clusters = represent(model, batch, config.image_size)[1].argmax(1)
        yield clusters, time.perf_counter() - start


def follow(config: Config, stream: ImageSet, model: ContrastiveClusteringModel) -> dict[str, list]:
    """Along the stream: the model's own assignments, made once as each image came, against k-means that is refitted on
    the same model's features of all images so far.

    ``images`` so far; ``nmi`` and ``nmi_kmeans`` on these; ``changed``, the share of earlier images that the refit
    moved to another cluster, after the best renaming; and ``seconds_kmeans`` of the refit.
    """
    z, p = represent(model, as_tensor(stream.images), config.image_size)
    lines, before = [], np.zeros(0, dtype=int)
    for end in np.linspace(0, len(z), POINTS + 1).astype(int)[1:]:
        start = time.perf_counter()
        refitted = kmeans(z[:end], config.n_clusters, config.seed)
        seconds = time.perf_counter() - start
        nmi, nmi_kmeans = (scores(stream.labels[:end], clusters)["nmi"] for clusters in (p[:end].argmax(1), refitted))
        changed = 1 - accuracy(before, refitted[: len(before)]) if len(before) else 0.0
        lines.append((int(end), nmi, nmi_kmeans, changed, round(seconds, 4)))
        before = refitted
    names = ("images", "nmi", "nmi_kmeans", "changed", "seconds_kmeans")
    return dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))


def train_once(config: Config, stream: ImageSet, steps: int = 1) -> tuple[ContrastiveClusteringModel, dict[str, list]]:
    """Train from scratch on batches that are seen once: on each ``steps`` steps, every one on two fresh views, then the
    batch is gone. What does not fill a batch is left out.

    Returns the model, and at `POINTS` of the way ``images`` seen, and ``nmi`` and ``acc`` on all images of the stream.
    """
    config = resolve(config)
    state, n = start(config, stream), config.batch_size
    images, sizes, lines = as_tensor(stream.images).to(config.device), torch.tensor(stream.sizes), []
    scored = set(np.linspace(0, len(images) // n, POINTS + 1).round().astype(int)[1:])
    for batch in range(len(images) // n):
        rows = slice(batch * n, (batch + 1) * n)
        for number in range(steps):
            step(state.model, state.optimizer, *next(pairs(images[rows], sizes[rows], config, batch, number)), config)
        if batch + 1 in scored:
            found = scores(stream.labels, represent(state.model, images, config.image_size)[1].argmax(1))
            lines.append(((batch + 1) * n, found["nmi"], found["acc"]))
    return state.model.eval(), dict(zip(("images", "nmi", "acc"), map(list, zip(*lines, strict=True)), strict=True))
