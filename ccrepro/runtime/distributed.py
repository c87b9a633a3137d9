"""The processes that train one model together, each on a device of its own; usually there is one, alone.

``torchrun --nproc-per-node R -m ccrepro train …`` starts them. Every rank takes the same rows of every global batch, in
the order of the ranks, and sees the outputs of all: so both losses are those of the global batch. Batch-norm is
synchronised on GPUs; on CPUs, for which torch has no such layer, each rank normalises by its own rows. Rank 0 alone
writes.

Letters: R ranks, N images of the global batch, n = N / R of them on each rank.
"""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ccrepro.errors import CheckpointError, NumericalError, Stopped


class Ranks:
    """One process, with nobody to share with."""

    rank, size = 0, 1

    def rows(self, n_images: int) -> slice:
        """This rank's rows of a global batch."""
        return slice(*(rank * n_images // self.size for rank in (self.rank, self.rank + 1)))

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks: (n, F) → (N, F), in the order of the global batch. Gradients flow back."""
        return x

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as training calls it, whose gradients are the same on all ranks after each backward pass."""
        return model

    def agree(self, *numbers: int) -> list[int]:
        """The largest of all ranks' of each number."""
        return list(numbers)

    def share(self, make: Callable[[], Any]) -> Any:
        """What ``make`` returns on rank 0; it is called there alone."""
        return make()


ALONE = Ranks()


class Together(Ranks):
    """One of several processes that torchrun started."""

    def __init__(self, device: torch.device):
        if device.type == "cuda":
            torch.cuda.set_device(distributed.get_node_local_rank())
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.host = distributed.new_group(backend="gloo")  # in whose calls no rank waits for its GPU

    def gather(self, x: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_gather  # late: it warns when it is imported

        return torch.cat(all_gather(x.contiguous()))

    def wrap(self, model: nn.Module) -> nn.Module:
        if next(model.parameters()).is_cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place; torch has none for CPUs
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.14
        return nn.parallel.DistributedDataParallel(model, **{sync: False})

    def agree(self, *numbers: int) -> list[int]:
        found = torch.tensor(numbers)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, self.host)
        return found.tolist()

    def share(self, make: Callable[[], Any]) -> Any:
        told = [make() if self.rank == 0 else None]
        distributed.broadcast_object_list(told, group=self.host)
        return told[0]


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, for the length of the block; one alone where it did not start this process.

    An error that all ranks raise is told by rank 0; the others exit with its code.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    warnings.filterwarnings("ignore", "torch.distributed.nn.functional")
    together = Together(device)
    try:
        yield together
        distributed.destroy_process_group()
    except (Stopped, CheckpointError, NumericalError) as error:
        raise (error if together.rank == 0 else SystemExit(error.exit_code)) from None
