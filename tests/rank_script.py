"""What each of several ranks computes, written to files. Run by test_ranks.py: ``rank_script.py OUT SIZE...``."""

import contextlib
import dataclasses
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import lightning_fabric  # noqa: F401  so that no rank has to
import numpy as np
import torch
from count_sent import sent

from ccrepro import ranks, train
from ccrepro.checkpoint import Checkpoints
from ccrepro.config import Config, recipe
from ccrepro.datasets import ImageSet
from ccrepro.errors import Stopped
from ccrepro.model import build
from ccrepro.ranks import Ranks


def images(n: int, side: int = 8, channels: int = 3) -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, channels, side, side), np.uint8)
    return ImageSet("noise", pixels, np.full((n, 2), side), np.zeros(n, int), ("a",), "")


def numbered(n: int) -> ImageSet:
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 8, 8)).copy()
    return ImageSet("numbers", pixels, np.full((n, 2), 8), np.zeros(n, int), ("a",), "")


SMALL = {"image_size": 8, "batch_size": 16, "n_clusters": 4, "instance_dim": 8, "device": "cpu"}
CASES = {
    "digits' settings": (recipe("digits", batch_size=16, device="cpu"), images(32, channels=1)),
    "fast, all norms": (recipe("cifar10", "fast", backbone="small", head_norm=True, **SMALL), images(32)),
    "shared head": (recipe("digits", "demo", "shared-head", batch_size=16, device="cpu"), images(32, channels=1)),
    "instance only": (recipe("cifar10", "paper", "instance-only", backbone="small", stem="cifar", **SMALL), images(32)),
    "resnet18": (recipe("cifar10", "paper", "resnet18", **SMALL | {"image_size": 32}), images(16, 32)),
}
ORDER = (recipe("digits", batch_size=16, device="cpu"), numbered(70))
COUNTED = (recipe("digits", batch_size=64, device="cpu", backbone="resnet18"), images(192, channels=1))


def two_steps(config: Config, data: ImageSet, together: Ranks) -> dict[str, torch.Tensor]:
    """The last of two steps: its numbers and gradients, weights and running statistics after it, in double precision:
    what is left of a difference is none of rounding."""
    model = build(config, data.images.shape[1]).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (part,) = train._passes(config, data)
    network, batches = together.wrap(model), train.pairs(part.images, part.sizes, config, epoch=0, ranks=together)
    for views in batches:
        numbers = train.step(network, optimizer, *(view.double() for view in views), config, ranks=together)
    gradients = {f"gradient.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    after = {f"after.{name}": value.double() for name, value in model.state_dict().items()}
    return {**numbers, **gradients, **after}


def order(config: Config, data: ImageSet, together: Ranks) -> torch.Tensor:
    """The images of each step of two epochs, by their number, which is the value of their pixels: (steps, n)."""
    config = dataclasses.replace(config, views="none")
    (part,) = train._passes(config, data)
    batches = (train.pairs(part.images, part.sizes, config, epoch, ranks=together) for epoch in range(2))
    return torch.stack([(view[:, 0, 0, 0] * 255).round() for steps in batches for view, _ in steps])


def saved_first(config: Config, folder: Path, together: Ranks) -> bool:
    """Whether rank 0, which is slow to save, had done so when this rank left training after a SIGTERM to rank 0."""

    class Slow(Checkpoints):
        def save(self, *args: Any) -> None:
            time.sleep(0.5)
            super().save(*args)

    def signal_once(epoch: train.Epoch, model: torch.nn.Module) -> None:
        if epoch["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    checkpoints = Slow(folder, 1e9) if together.rank == 0 else None
    with contextlib.suppress(Stopped):
        train.train(dataclasses.replace(config, epochs=9), images(32, channels=1), signal_once, checkpoints, together)
        return False
    return Checkpoints(folder).newest() is not None


def compute(out: str, size: int) -> None:
    """What this rank finds."""
    config = ORDER[0] if size == 2 else dataclasses.replace(ORDER[0], devices=2, nodes=2)
    assert not ranks.to_be_launched(config)
    config = ranks.settle(config)
    with ranks.join(config) as together:
        found = {}
        for name, (case, data) in CASES.items():
            found |= {f"{name}.{key}": value for key, value in two_steps(case, data, together).items()}
        found["order"] = order(*ORDER, together)
        found["agreed"] = torch.tensor(together.agree(together.rank, 7 * (together.rank == 1), 0))
        found["shared"] = torch.tensor(together.share(lambda: 100 + together.rank))
        found["saved first"] = torch.tensor(saved_first(config, Path(f"{out}.{size}.stopped"), together))
        if size == 2:
            found["sent"] = sent(*COUNTED, together)
        torch.save(found, f"{out}.{together.size}.{together.rank}")


def by_torchrun(rank: int, size: int) -> dict[str, Any]:
    """The environment of a rank that torchrun starts, all on one node."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return {**place, "MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "test"}


def by_srun(rank: int, size: int) -> dict[str, Any]:
    """The environment of a task that srun starts, two on each of two nodes."""
    task = {"PROCID": rank, "LOCALID": rank % 2, "NODEID": rank // 2, "NTASKS": size, "NTASKS_PER_NODE": 2, "NNODES": 2}
    task |= {"JOB_ID": 1, "JOB_NAME": "interactive", "NODELIST": "localhost", "STEP_NUM_TASKS": size}
    return {f"SLURM_{name}": value for name, value in task.items()}


def free_port() -> int:
    """Of those that no other process is given unless it asks for this one."""
    while True:
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("localhost", random.randrange(20_000, 30_000)))
            return tried.getsockname()[1]


def fork(out: str, size: int) -> None:
    """All ranks of one size, as copies of this process, which has imported everything."""
    port, children = free_port(), []
    for rank in range(size):
        children.append(os.fork())
        if not children[-1]:
            place = {"MASTER_PORT": port, **(by_torchrun if size == 2 else by_srun)(rank, size)}
            os.environ.update({name: str(value) for name, value in place.items()})
            compute(out, size)
            os._exit(0)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size in sys.argv[2:]:
        fork(sys.argv[1], int(size))
