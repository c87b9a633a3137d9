"""What each rank hands to collectives in one real training step."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccrepro import train
from ccrepro.config import Config
from ccrepro.datasets import ImageSet
from ccrepro.ranks import Ranks

# By the name of the operation: the kind, and the argument that holds what this rank hands over.
KINDS = {
    "allgather_": ("all-gather", 1),
    "allreduce_": ("all-reduce", 0),
    "scatter_": ("all-to-all", 1),  # gloo's, one from each rank
    "broadcast_": ("broadcast", 0),
}


class Count(TorchDispatchMode):
    """Calls and bytes of all that goes through torch.distributed, by kind: DistributedDataParallel's included."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            kind, place = KINDS[function._opname]
            self.calls[kind] += 1
            self.bytes[kind] += sum(x.numel() * x.itemsize for x in tree_leaves(args[place]))
        return function(*args, **(kwargs or {}))


def sent(config: Config, data: ImageSet, together: Ranks) -> dict[str, dict[str, int]]:
    """``calls`` and ``bytes`` of this rank in one step of training, by kind."""
    state, (part,) = train.start(config, data, together), train._passes(config, data)
    views = train.pairs(part.images, part.sizes, config, 0, ranks=together)
    for _ in range(2):  # in which DistributedDataParallel settles how it groups gradients
        train.step(state.network, state.optimizer, *next(views), config, ranks=together)
    with Count() as count:
        train.step(state.network, state.optimizer, *next(views), config, ranks=together)
        together.agree(0, 0)
    return {"calls": dict(count.calls), "bytes": dict(count.bytes)}
