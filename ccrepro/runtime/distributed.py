"""The processes (ranks) that train one model together, each on its own device. Usually there is one.

``torchrun --nproc-per-node R -m ccrepro train …`` starts them. Each rank computes its share of the rows of every global
batch, then gathers the outputs of all ranks, so both losses are those of the global batch. Batch norm is synchronised
on GPUs. torch has no such layer for CPUs: there each rank normalises by its own rows. Only rank 0 writes files.

Letters: R ranks, N images of the global batch, n = N / R of them on each rank.
"""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ccrepro.errors import CheckpointError, ConfigError, NumericalError, Stopped


class Ranks:
    """The processes that train together: by default this one alone, otherwise those that torchrun started."""

    rank, size = 0, 1
    host = None  # the group of all; calls in it do not wait for a GPU

    def rows(self, n_images: int) -> slice:
        """This rank's rows of a global batch. Raises `ConfigError` where the ranks' shares would differ."""
        if n_images % self.size:
            raise ConfigError(f"batch_size is {n_images}, for {self.size} ranks. Write a multiple of that.")
        return slice(*(rank * n_images // self.size for rank in (self.rank, self.rank + 1)))

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks, in the order of the global batch: (n, F) → (N, F). Gradients flow back."""
        if self.host is None:
            return x
        from torch.distributed.nn.functional import all_gather  # late: importing it warns

        return torch.cat(all_gather(x.contiguous()))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call in training. Its gradients are the same on all ranks after each backward pass."""
        if self.host is None:
            return model
        if next(model.parameters()).is_cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place; torch has none for CPUs
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.14
        return nn.parallel.DistributedDataParallel(model, **{sync: False})

    def agree(self, *numbers: int) -> list[int]:
        """The maximum over all ranks, of each number."""
        found = torch.tensor(numbers)
        if self.host is not None:
            distributed.all_reduce(found, distributed.ReduceOp.MAX, self.host)
        return found.tolist()

    def share(self, make: Callable[[], Any]) -> Any:
        """What ``make`` returns on rank 0, the only rank that calls it."""
        told = [make() if self.rank == 0 else None]
        if self.host is not None:
            distributed.broadcast_object_list(told, group=self.host)
        return told[0]


ALONE = Ranks()


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, for the length of the block; without torchrun, `ALONE`. Rank 0 raises an
    error that all ranks meet; the others exit with its exit code."""
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    warnings.filterwarnings("ignore", "torch.distributed.nn.functional")
    if device.type == "cuda":
        torch.cuda.set_device(distributed.get_node_local_rank())
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    ranks = Ranks()
    ranks.rank, ranks.size = distributed.get_rank(), distributed.get_world_size()
    ranks.host = distributed.new_group(backend="gloo")
    try:
        yield ranks
        distributed.destroy_process_group()
    except (Stopped, CheckpointError, NumericalError) as error:
        raise (error if ranks.rank == 0 else SystemExit(error.exit_code)) from None
