"""Where images live: on the GPU where they fit, else in the host's memory or mapped from disk."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

RESIDENT_SHARE = 0.5  # of a GPU's free memory that a data set may take, to be kept there
AHEAD = 4  # batches that are read while training computes


def placed(images: Tensor, device: torch.device) -> Tensor:
    """The images on the GPU, if that is the device and they fit; otherwise as they are."""
    fits = device.type == "cuda" and images.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info()[0]
    return images.to(device) if fits else images


def fetched(images: Tensor, order: Tensor, device: torch.device) -> Iterator[Tensor]:
    """The images of each row of ``order``, int (steps, n), on the device.

    Images that are elsewhere are read by two threads, through pinned memory, while the last batch is in use. They are
    moved by the caller's thread: which GPU is the current one is each thread's own.
    """
    if images.device.type == device.type:
        yield from (images[rows] for rows in order.to(device))
        return

    def read(rows: Tensor) -> Tensor:
        return images[rows].pin_memory() if device.type == "cuda" else images[rows]

    with ThreadPoolExecutor(2) as pool:
        waiting = deque()
        for rows in order:
            waiting.append(pool.submit(read, rows))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result().to(device, non_blocking=True)
        yield from (batch.result().to(device, non_blocking=True) for batch in waiting)
