"""What each of two ranks does, for test_distributed.py: ``torchrun rank_script.py compute|train FOLDER``."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccrepro import batches, train
from ccrepro.config import Config
from ccrepro.data import ImageSet
from ccrepro.errors import CcreproError, Stopped
from ccrepro.model import build
from ccrepro.recipes import recipe
from ccrepro.runs.checkpoints import Checkpoints
from ccrepro.runs.resume import fit
from ccrepro.runtime.device import choose_device
from ccrepro.runtime.distributed import Ranks, join


def images(channels: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (32, channels, 8, 8), np.uint8)
    return ImageSet("noise", pixels, np.zeros(32, int), ("a",), "")


DATA, CONFIG = images(1), recipe("digits", "demo", batch_size=16, epochs=60, device="cpu")
COLOUR = {"backbone": "small", "stem": "cifar", "image_size": 8, "batch_size": 16, "n_clusters": 4, "device": "cpu"}
CASES = {
    "digits": (CONFIG, DATA),
    "shared head": (recipe("digits", "demo", "shared-head", batch_size=16, device="cpu"), DATA),
    "instance only": (recipe("cifar10", "paper", "instance-only", **COLOUR), images(3)),
}


def first_step(config: Config, data: ImageSet, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Metrics and gradients of the first batch in double precision: what is left of a difference is not rounding.

    In evaluation mode: each CPU rank normalises by the statistics of its own rows in training.
    """
    model = build(config, data.images.shape[1]).double().eval()
    (part,) = batches.passes(config, data)
    views = next(batches.pairs(part.images, config, epoch=0, rows=ranks.rows(config.batch_size)))
    network = ranks.wrap(model)
    loss, metrics = train.losses(network, *(view.double() for view in views), config, config.heads, ranks.gather)
    loss.backward()
    return metrics | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def saved_first(folder: Path, ranks: Ranks) -> bool:
    """Whether rank 0, which is slow to save, had done so when this rank left training after a SIGTERM to rank 0."""

    class Slow(Checkpoints):
        def save(self, *args: Any) -> None:
            time.sleep(0.5)
            super().save(*args)

    def signal_once(epoch: train.Epoch, model: torch.nn.Module) -> None:
        if epoch["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    checkpoints = Slow(folder, 1e9) if ranks.rank == 0 else None
    with contextlib.suppress(Stopped):
        fit(CONFIG, DATA, signal_once, checkpoints, ranks)
        return False
    return Checkpoints(folder).newest() is not None


def compute(folder: Path, ranks: Ranks) -> None:
    found = {name: first_step(*case, ranks) for name, case in CASES.items()}
    found["agreed"] = ranks.agree(ranks.rank, 7 * (ranks.rank == 1), 0)
    found["shared"] = ranks.share(lambda: f"made by {ranks.rank}")
    found["saved first"] = saved_first(folder / "stopped", ranks)
    found["unbroken"] = fit(CONFIG, DATA, ranks=ranks)[0].state_dict()
    torch.save(found, folder / f"rank{ranks.rank}")


def resumable(folder: Path, ranks: Ranks) -> None:
    """Train, with a checkpoint after each step."""
    model, _ = fit(CONFIG, DATA, checkpoints=Checkpoints(folder, 0) if ranks.rank == 0 else None, ranks=ranks)
    if ranks.rank == 0:
        torch.save(model.state_dict(), folder / "weights")


if __name__ == "__main__":
    try:
        with join(choose_device("cpu")) as together:
            {"compute": compute, "train": resumable}[sys.argv[1]](Path(sys.argv[2]), together)
    except CcreproError as error:
        print(error)
        sys.exit(error.exit_code)
