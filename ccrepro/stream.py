"""A trained model on an endless stream of pictures: image by image, as §3.4 has it, in bounded memory.

The network only ever sees blocks of one size, the last one filled up. Then what is said of an image depends, bit for
bit, neither on its neighbours nor on how the stream was cut (in blocks of other sizes, sums are taken in another
order, and the last bits differ).

Letters: N images, C channels, H, W sides, D instance dimension, F feature width, K clusters.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ccrepro.augmentations import plain
from ccrepro.datasets import own
from ccrepro.datasets.decode import BadImage
from ccrepro.model import ContrastiveClusteringModel

AHEAD = 4  # blocks of pictures that are decoded before their turn


class Outputs(NamedTuple):
    """z: float32 (N, D), unit rows of the instance head. p: float32 (N, K), assignments. h: float32 (N, F), the
    backbone's features."""

    z: np.ndarray
    p: np.ndarray
    h: np.ndarray


class Prediction(NamedTuple):
    """Of one picture: its cluster and the assignment to it, or in their place what is wrong with the file."""

    path: str
    cluster: int | None
    confidence: float | None
    outputs: Outputs | None
    error: str | None = None


def block_size(model: ContrastiveClusteringModel) -> int:
    """Few on a CPU, so that one image does not wait for many; many on a GPU, which is idle otherwise.

    Not fewer than 16: below that, a matrix product's last bits depend on the row.
    """
    return 256 if next(model.parameters()).is_cuda else 16


@torch.inference_mode()
def outputs(model: ContrastiveClusteringModel, images: np.ndarray, size: int) -> Outputs:
    """What the model says of uint8 (N, C, H, W) images, N at least 1, resized to ``size``."""
    model.eval()
    n = block_size(model)
    parts = [_block(model, images[i : i + n], size, n) for i in range(0, len(images), n)]
    return Outputs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _block(model: ContrastiveClusteringModel, images: np.ndarray, size: int, n: int) -> Outputs:
    """Outputs of up to n images, computed as for n."""
    block = np.zeros((n, *images.shape[1:]), np.uint8)
    block[: len(images)] = images
    features: list[Tensor] = []
    watch = model.backbone.register_forward_hook(lambda module, inputs, output: features.append(output))
    try:
        z, p = model(plain(torch.from_numpy(block).to(next(model.parameters()).device), size))
    finally:
        watch.remove()
    return Outputs(*(t[: len(images)].float().cpu().numpy() for t in (z, p, features[0])))


@dataclass
class Timing:
    """Of a stream: pictures, bad ones among them, seconds since the first was read, and the last 10,000 latencies."""

    images: int = 0
    bad: int = 0
    started: float = field(default_factory=time.perf_counter)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))

    def so_far(self, total: int | None) -> str:
        """How many are done, and the time left where the total is known."""
        seconds = time.perf_counter() - self.started
        of = f" of {total:,}, {seconds / self.images * (total - self.images):.0f} s left" if total else ""
        return f"{self.images:,} pictures{of}, {self.images / seconds:.1f} a second"

    def __str__(self) -> str:
        seconds = time.perf_counter() - self.started
        rate = self.images / seconds if seconds else 0.0
        text = f"{self.images:,} pictures in {seconds:.1f} s, {rate:.1f} a second"
        if self.latencies:
            middle, slow = np.percentile(self.latencies, [50, 95]) * 1000
            text += f"; from path to answer {middle:.0f} ms in the median, {slow:.0f} ms for the slowest twentieth"
        return text + (f"; {self.bad:,} of them bad" if self.bad else "")


def predict(
    model: ContrastiveClusteringModel,
    size: int,
    side: int,
    paths: Iterable[str],
    timing: Timing | None = None,
    threads: int = 4,
) -> Iterator[Prediction]:
    """Predictions in the order of the paths, each as soon as it is known; ``paths`` may be slow, and may never end.

    size: of the views the model was trained on. side: of the square that pictures are decoded to. Memory does not grow
    with the stream.
    """
    timing = timing or Timing()
    n = block_size(model)
    for ready in _ready(paths, side, model.backbone.conv1.in_channels, n, threads):
        images = [picture for _, picture, _ in ready if not isinstance(picture, BadImage)]
        found = iter(zip(*outputs(model, np.stack(images), size), strict=True)) if images else iter(())
        for path, picture, read_at in ready:
            timing.images += 1
            timing.latencies.append(time.perf_counter() - read_at)
            if isinstance(picture, BadImage):
                timing.bad += 1
                yield Prediction(path, None, None, None, str(picture))
            else:
                z, p, h = next(found)
                yield Prediction(path, int(p.argmax()), float(p.max()), Outputs(z, p, h))


Ready = list[tuple[str, np.ndarray | BadImage, float]]


def _ready(paths: Iterable[str], side: int, channels: int, n: int, threads: int) -> Iterator[Ready]:
    """Up to n decoded pictures at a time: as many as are there, at least one; each with the time its path came."""
    waiting: queue.Queue[tuple[str, Future, float] | BaseException | None] = queue.Queue(AHEAD * n)
    stopped = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        threading.Thread(target=_feed, args=(paths, side, channels, pool, waiting, stopped), daemon=True).start()
        try:
            while (first := waiting.get()) is not None:
                taken = [first]
                while len(taken) < n and not waiting.empty() and taken[-1] is not None:
                    taken.append(waiting.get())
                ended = taken[-1] is None
                for item in taken:
                    if isinstance(item, BaseException):
                        raise item
                yield [(path, future.result(), at) for path, future, at in filter(None, taken)]
                if ended:
                    return
        finally:
            stopped.set()
            while not waiting.empty():  # makes room, so that the feeding thread sees it
                waiting.get()


def _feed(
    paths: Iterable[str],
    side: int,
    channels: int,
    pool: ThreadPoolExecutor,
    waiting: queue.Queue,
    stopped: threading.Event,
) -> None:
    """Read paths and have their pictures decoded, no further ahead than the queue is long; then None, or the error."""
    try:
        for path in paths:
            waiting.put((path, pool.submit(_read, path, side, channels), time.perf_counter()))
            if stopped.is_set():
                return
        waiting.put(None)
    except BaseException as error:  # is raised again where the stream is read
        waiting.put(error)


def _read(path: str, side: int, channels: int) -> np.ndarray | BadImage:
    picture = own.read(path, side)
    return picture if isinstance(picture, BadImage) else in_channels(picture[None], channels)[0]


def in_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """uint8 (N, 1 or 3, H, W) in grey or in colour, as ``channels`` says; grey by the weights of Pillow's "L"."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, 1)
    weighted = images.astype(np.uint32) * np.array([19595, 38470, 7471], np.uint32)[:, None, None]
    return ((weighted.sum(1, keepdims=True) + 0x8000) >> 16).astype(np.uint8)
