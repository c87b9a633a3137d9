"""Streams: assign images as they come (§3.4), in bounded memory, and learn from chunks that are seen once.

An image's cluster does not depend on its neighbours. The last bits of an output may: batches of other sizes add up in
another order.

Letters: N images, D instance dimension, F feature width, K clusters.
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np
import torch

from ccrepro.batches import pairs
from ccrepro.config import Config
from ccrepro.data import as_tensor
from ccrepro.data.images import LONGEST, BadImage, Range, read
from ccrepro.evaluate import embed
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.runtime.ragged import Ragged, channels_of, stacked
from ccrepro.train import Epoch, State, close_epoch, step

BLOCK = 32  # images of a list that are decoded, and answered, together


class Outputs(NamedTuple):
    """z: float32 (N, D), the instance head's unit rows. p: float32 (N, K), the assignments. h: float32 (N, F), the
    features of the backbone."""

    z: np.ndarray
    p: np.ndarray
    h: np.ndarray


def outputs(model: ContrastiveClusteringModel, images: np.ndarray | Ragged, config: Config) -> Outputs:
    """All outputs of the model for N uint8 images, N at least 1, resized as the settings say."""
    features: list[torch.Tensor] = []
    watch = model.backbone.register_forward_hook(lambda module, inputs, output: features.append(output.cpu()))
    try:
        z, p = embed(model, as_tensor(images), config)
    finally:
        watch.remove()
    return Outputs(z, p, torch.cat(features).numpy())


def predict(
    model: ContrastiveClusteringModel,
    config: Config,
    paths: Iterable[str],
    longest: int = LONGEST,
    values: Range | None = None,
) -> Iterator[tuple[str, Outputs | BadImage]]:
    """Each path with its image's outputs, (D,), (K,) and (F,), or with what is wrong with the file, in order.

    A list is taken `BLOCK` paths at a time. Any other iterable is a stream, which may be slow and may never end: each
    path is answered before the next one is asked for. Memory does not grow with the paths. config: the settings that
    the model was trained with. longest: the length to which longer sides are reduced first. values: black and white of
    deep images.
    """
    at_once, coming = BLOCK if isinstance(paths, list) else 1, iter(paths)
    with ThreadPoolExecutor() as pool:  # not a DataLoader: its processes take longer to start than an image takes
        while block := list(islice(coming, at_once)):
            images = list(pool.map(read, block, repeat(longest), repeat(values)))
            good = [image for image in images if not isinstance(image, BadImage)]
            found = outputs(model, in_channels(stacked(good), model.channels), config) if good else ()
            rows = map(Outputs._make, zip(*found, strict=True))
            for path, image in zip(block, images, strict=True):
                yield path, image if isinstance(image, BadImage) else next(rows)


def in_channels(images: np.ndarray | Ragged, channels: int) -> np.ndarray | Ragged:
    """N uint8 images, grey or in colour → the same in ``channels``, 1 or 3. Grey has the weights of Pillow's "L"."""
    if channels_of(images) == channels:
        return images
    if isinstance(images, Ragged):
        return stacked([in_channels(image[None], channels)[0] for image in images])
    if channels == 3:
        return np.repeat(images, 3, 1)
    weighted = images.astype(np.uint32) * np.array([19595, 38470, 7471], np.uint32)[:, None, None]
    return ((weighted.sum(1, keepdims=True) + 0x8000) >> 16).astype(np.uint8)


def learn(state: State, images: np.ndarray | Ragged, steps: int = 1) -> Epoch:
    """Train ``steps`` times on a chunk of uint8 images, each time on fresh views; what fills no batch is left out.

    The chunk counts as ``steps`` epochs. Returns the means of `METRIC_NAMES`, as in the history.
    """
    began, first = time.perf_counter(), state.epoch
    for state.epoch in range(first, first + steps):  # each draws other views
        for views in pairs(as_tensor(images), state.config, state.epoch):
            state.steps.append(step(state, *views))
    state.seconds = time.perf_counter() - began
    close_epoch(state)
    return state.history[-1]
