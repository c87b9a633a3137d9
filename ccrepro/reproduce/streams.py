"""What a finished run does on a stream: it assigns image by image (§3.4), also images that it has never seen. And what
training on chunks that are seen once comes to."""

import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ccrepro.config import Config
from ccrepro.data import ImageSet, as_tensor
from ccrepro.evaluate import embed
from ccrepro.metrics import matched_classes, scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.recipes import SAMPLE, overrides
from ccrepro.runs.finished import run_folder
from ccrepro.runs.streaming import learn
from ccrepro.runs.weights import load_model
from ccrepro.runtime import storage
from ccrepro.runtime.device import choose_device, threads
from ccrepro.train import start

ARRIVING = (1, 8, 64, 512)  # images that arrive at once
POINTS = 10  # times that the stream is scored
STEPS = 20  # on each batch of a chunk


def measure(config: Config, data: ImageSet, rest: ImageSet | None = None, runs_dir: str | Path = "") -> dict[str, Any]:
    """What a finished run of the full method does on a stream of its images, at most `SAMPLE` of them, in random order.

    Writes ``streaming.json`` into the run's folder: ``assign`` (of `assign`), ``once`` (of `train_once`, for three
    sizes of a chunk: a batch, a tenth of the stream, all of it) and, where the run left out the images of ``rest``,
    ``unseen`` (of `unseen`). Raises `CheckpointError` where the run has no weights.
    """
    folder = run_folder(config, runs_dir)
    model = load_model(folder)[0].to(choose_device(config.device))
    order = np.random.default_rng(config.seed).permutation(len(data.images))[:SAMPLE]
    stream = dataclasses.replace(data, images=data.images[order], labels=data.labels[order])
    result = {name: getattr(config, name) for name in ("dataset", "preset", "variant", "seed")}
    result["overrides"] = overrides(config)
    with threads(config.threads):
        result["assign"] = assign(config, stream, model)
        if rest is not None:
            result["unseen"] = unseen(config, data, rest, model)
        batches = len(stream.images) // config.batch_size
        kinds = ((1, 1), (max(1, batches // POINTS), STEPS), (batches, STEPS))
        result["once"] = [train_once(config, stream, chunk, steps) for chunk, steps in kinds]
    storage.atomic_write(folder / "streaming.json", json.dumps(result, indent=1) + "\n")
    return result


def assign(config: Config, stream: ImageSet, model: ContrastiveClusteringModel, most: int = 1000) -> dict[str, list]:
    """Cluster the first ``most`` images of a stream in batches of several sizes. Returns for each size ``batch_size``,
    ``same`` (share of images with the same cluster as in one large batch) and ``milliseconds`` (median time from
    arrival to assignment)."""
    images, lines = as_tensor(stream.images[:most]), []
    offline = embed(model, images, config)[1].argmax(1)
    for size in ARRIVING:
        embed(model, images[:size], config)  # the first call is slower
        clusters, seconds = [], []
        for first in range(0, len(images), size):
            batch, began = images[first : first + size], time.perf_counter()
            clusters.append(embed(model, batch, config)[1].argmax(1))
            seconds.append(time.perf_counter() - began)
        same = np.mean(np.concatenate(clusters) == offline)
        lines.append((size, same, round(1000 * np.median(seconds), 3)))
    return pd.DataFrame(lines, columns=["batch_size", "same", "milliseconds"]).to_dict("list")


def unseen(config: Config, seen: ImageSet, rest: ImageSet, model: ContrastiveClusteringModel) -> dict[str, float]:
    """Assign images that the model was not trained on, one by one.

    Returns how many they are (``n_images``), ``images_per_second``, and the share whose cluster is the one of their
    class (``acc``), beside that of the images seen (``acc_seen``). Which cluster is of which class, the seen images
    decide.
    """
    clusters = embed(model, as_tensor(seen.images), config)[1].argmax(1)
    classes = matched_classes(seen.labels, clusters, config.n_clusters)
    images, began = as_tensor(rest.images), time.perf_counter()
    alone = np.concatenate([embed(model, images[i : i + 1], config)[1].argmax(1) for i in range(len(images))])
    rate = len(images) / (time.perf_counter() - began)
    acc, acc_seen = ((classes[found] == of.labels).mean() for found, of in ((alone, rest), (clusters, seen)))
    return {"n_images": len(images), "images_per_second": round(rate, 1), "acc": acc, "acc_seen": acc_seen}


def train_once(config: Config, stream: ImageSet, chunk: int = 1, steps: int = 1) -> dict[str, Any]:
    """Train from scratch on chunks of ``chunk`` batches that come once, each ``steps`` times, as `partial_fit` would.
    Images that do not fill a batch are left out.

    Returns ``chunk`` (its images), ``steps`` and, at no more than `POINTS` evenly spaced moments, ``images`` that have
    come, and ``nmi`` and ``acc`` on all images of the stream.
    """
    state, n, lines = start(config, stream), config.batch_size, []
    batches = len(stream.images) // n
    ends = [*range(0, batches, chunk), batches]
    scored = set(np.linspace(0, len(ends) - 1, POINTS + 1).round().astype(int))
    for number, (first, last) in enumerate(itertools.pairwise(ends), 1):
        learn(state, stream.images[first * n : last * n], steps)
        if number in scored:
            clusters = embed(state.model, as_tensor(stream.images), config)[1].argmax(1)
            found = scores(stream.labels, clusters)
            lines.append((last * n, found["nmi"], found["acc"]))
    curve = pd.DataFrame(lines, columns=["images", "nmi", "acc"]).to_dict("list")
    return {"chunk": min(chunk, batches) * n, "steps": steps, **curve}
