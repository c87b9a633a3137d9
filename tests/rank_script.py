"""What each of several ranks computes, written to files. Run by test_ranks.py: ``rank_script.py JOB OUT SIZE...``."""

import dataclasses
import os
import socket
import sys

import torch

from ccrepro import ranks, train
from ccrepro.config import Config
from ccrepro.datasets import ImageSet
from ccrepro.model import build
from ccrepro.ranks import Ranks


def first_step(config: Config, data: ImageSet, together: Ranks) -> dict[str, torch.Tensor]:
    """The first step's numbers, gradients before it and weights and running statistics after it, in double precision:
    what is left of a difference is none of rounding."""
    model = build(config, data.images.shape[1]).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (part,) = train._passes(config, data)
    views = (view.double() for view in next(train.pairs(part.images, part.sizes, config, epoch=0, ranks=together)))
    numbers = train.step(together.wrap(model), optimizer, *views, config, ranks=together)
    gradients = {f"gradient.{name}": p.grad for name, p in model.named_parameters()}
    after = {f"after.{name}": value.double() for name, value in model.state_dict().items()}
    return {**numbers, **gradients, **after}


def order(config: Config, data: ImageSet, together: Ranks) -> torch.Tensor:
    """The images of each step of two epochs, by their number, which is the value of their pixels: (steps, n)."""
    config = dataclasses.replace(config, views="none")
    (part,) = train._passes(config, data)
    batches = (train.pairs(part.images, part.sizes, config, epoch, ranks=together) for epoch in range(2))
    return torch.stack([(view[:, 0, 0, 0] * 255).round() for steps in batches for view, _ in steps])


def compute(job: str, out: str) -> None:
    """What this rank finds, as torchrun would have started it."""
    cases, numbered = torch.load(job, weights_only=False)  # written by the test itself
    config = ranks.settle(numbered[0])
    with ranks.join(config) as together:
        found = {}
        for name, (case, data) in cases.items():
            found |= {f"{name}.{key}": value for key, value in first_step(case, data, together).items()}
        found["order"] = order(*numbered, together)
        found["agreed"] = torch.tensor(together.agree(together.rank, 7 * (together.rank == 1), 0))
        found["shared"] = torch.tensor(together.share(lambda: 100 + together.rank))
        torch.save(found, f"{out}.{together.size}.{together.rank}")


def fork(job: str, out: str, size: int) -> None:
    """All ranks of one size, as copies of this process, which has imported everything."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    children = []
    for rank in range(size):
        children.append(os.fork())
        if not children[-1]:
            place |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
            os.environ.update({name: str(value) for name, value in place.items()})
            compute(job, out)
            os._exit(0)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size in sys.argv[3:]:
        fork(*sys.argv[1:3], int(size))
