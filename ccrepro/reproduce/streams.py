"""What a finished run does on a stream: assignments image by image (§3.4), and training on batches seen once."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ccrepro.config import Config
from ccrepro.data import ImageSet, as_tensor
from ccrepro.evaluate import embed
from ccrepro.metrics import scores
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
STEPS = (1, 20)  # on each batch that is seen once


def measure(config: Config, data: ImageSet, runs_dir: str | Path = "") -> dict[str, Any]:
    """What a finished run of the full method does on a stream of its images, at most `SAMPLE` of them, in random order.

    Writes ``streaming.json`` into the run's folder: ``assign`` (of `assign`) and ``once`` (of `train_once`, by steps
    per batch). Raises `CheckpointError` where the run has no weights.
    """
    folder = run_folder(config, runs_dir)
    model = load_model(folder)[0].to(choose_device(config.device))
    order = np.random.default_rng(config.seed).permutation(len(data.images))[:SAMPLE]
    stream = dataclasses.replace(data, images=data.images[order], labels=data.labels[order])
    result = {name: getattr(config, name) for name in ("dataset", "preset", "variant", "seed")}
    result["overrides"] = overrides(config)
    with threads(config.threads):
        result["assign"] = assign(config, stream, model)
        result["once"] = {str(steps): train_once(config, stream, steps) for steps in STEPS}
    storage.atomic_write(folder / "streaming.json", json.dumps(result, indent=1) + "\n")
    return result


def assign(config: Config, stream: ImageSet, model: ContrastiveClusteringModel, most: int = 1000) -> dict[str, list]:
    """Cluster the first ``most`` images of a stream in batches of several sizes. Returns for each size ``batch_size``,
    ``same`` (share of images with the same cluster as in one large batch), ``milliseconds`` (median time from arrival
    to assignment) and ``images_per_second``."""
    images, lines = as_tensor(stream.images[:most]), []
    offline = embed(model, images, config)[1].argmax(1)
    for size in ARRIVING:
        embed(model, images[:size], config)  # the first call is slower
        clusters, seconds = [], []
        for first in range(0, len(images), size):
            batch, began = images[first : first + size], time.perf_counter()
            clusters.append(embed(model, batch, config)[1].argmax(1))
            seconds.append(time.perf_counter() - began)
        same, middle = np.mean(np.concatenate(clusters) == offline), 1000 * np.median(seconds)
        lines.append((size, same, round(middle, 3), round(len(images) / sum(seconds), 1)))
    names = ["batch_size", "same", "milliseconds", "images_per_second"]
    return pd.DataFrame(lines, columns=names).to_dict("list")


def train_once(config: Config, stream: ImageSet, steps: int = 1) -> dict[str, list]:
    """Train from scratch on batches that are seen once: ``steps`` steps on each, with two new views per step. Images
    that do not fill a batch are left out.

    Returns, at `POINTS` evenly spaced moments, ``images`` seen, and ``nmi`` and ``acc`` on all images of the stream.
    """
    state, n, lines = start(config, stream), config.batch_size, []
    batches = len(stream.images) // n
    scored = set(np.linspace(0, batches, POINTS + 1).round().astype(int)[1:])
    for batch in range(batches):
        rows = slice(batch * n, (batch + 1) * n)
        learn(state, stream.images[rows], steps)
        if batch + 1 in scored:
            clusters = embed(state.model, as_tensor(stream.images), config)[1].argmax(1)
            found = scores(stream.labels, clusters)
            lines.append(((batch + 1) * n, found["nmi"], found["acc"]))
    return pd.DataFrame(lines, columns=["images", "nmi", "acc"]).to_dict("list")
