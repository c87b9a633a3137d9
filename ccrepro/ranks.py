"""The processes that train one model together, each on a device of its own; usually there is one, alone.

Every rank takes the same rows of every global batch, in the order of the ranks, and sees the outputs of all: so both
losses, and the statistics of batch-norm, are those of the global batch. Rank 0 alone writes.

Letters: R ranks, N images of the global batch, n = N / R of them on each rank.
"""

import contextlib
import dataclasses
import inspect
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ccrepro.config import Config
from ccrepro.errors import CheckpointError, ConfigError, NumericalError, PeerError, Stopped
from ccrepro.machine import choose_device

T = TypeVar("T")
NAME = "ccrepro"  # of the jobs that `launch` starts
LOST = "lost another process of this run"
GO_ON = "The same command goes on from the newest checkpoint"


class Ranks:
    """One process, with nobody to share with."""

    rank, size = 0, 1

    def rows(self, n_images: int) -> slice:
        """This rank's rows of a global batch."""
        share = n_images // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks: (n, F) → (N, F), in the order of the global batch. Gradients flow back."""
        return x

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as training calls it, whose gradients are the same on all ranks after each backward pass."""
        return model

    def agree(self, *numbers: int) -> list[int]:
        """The largest of all ranks' of each number."""
        return list(numbers)

    def share(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0; it is called there alone."""
        return make()

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """One rank of each node runs the block before the others do: it fetches what they then find."""
        yield

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Raise `PeerError` where the block fails because another rank is gone."""
        yield


ALONE = Ranks()


class Together(Ranks):
    """One of several processes, connected by lightning-fabric."""

    def __init__(self, fabric: Any):
        self.fabric, self.rank, self.size = fabric, fabric.global_rank, fabric.world_size
        # The host's own group: on GPUs, agreeing through the other one would make the host wait for the device.
        self.host = torch.distributed.new_group(backend="gloo")

    def gather(self, x: Tensor) -> Tensor:
        return self.fabric.all_gather(x, sync_grads=True).flatten(0, 1)

    def wrap(self, model: nn.Module) -> nn.Module:
        if next(model.parameters()).is_cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place; on CPUs, the model's own is as good
        wrapped = self.fabric.setup_module(model, move_to_device=False)
        wrapped.mark_forward_method("pair")
        return wrapped

    def agree(self, *numbers: int) -> list[int]:
        found = torch.tensor(numbers)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, self.host)
        return found.tolist()

    def share(self, make: Callable[[], T]) -> T:
        return self.fabric.broadcast(make() if self.rank == 0 else None)

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        with self.fabric.rank_zero_first(local=True):
            yield

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        try:
            yield
        except (torch.distributed.DistError, RuntimeError) as error:
            if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
                raise
            raise PeerError(LOST, f"rank {self.rank} of {self.size}", "All must live", GO_ON) from error


def settle(config: Config) -> Config:
    """The settings with the devices and nodes that torchrun or srun, which started this process, stand for.

    Raises `ConfigError` where they contradict the settings.
    """
    if torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        if config.ranks not in (1, devices * nodes):
            what = f"devices x nodes is {config.ranks}, but torchrun started {devices * nodes} processes"
            raise ConfigError(what, "settings devices, nodes", "They must be equal", "Leave --devices and --nodes out")
        config = dataclasses.replace(config, devices=devices, nodes=nodes)
    elif _by_srun(config) and os.environ.get("SLURM_NTASKS_PER_NODE") != str(config.devices):
        what, fix = f"devices is {config.devices}", f"Give srun --ntasks-per-node={config.devices}"
        raise ConfigError(what, "settings devices, nodes", "srun must start as many tasks on each node", fix)
    if config.ranks > 1 and choose_device(config).type == "cuda" and config.devices > torch.cuda.device_count():
        visible = torch.cuda.device_count()
        what, allowed = f"devices is {config.devices}", f"This machine has {visible}"
        raise ConfigError(what, "setting devices", allowed, "Give fewer, or --nodes too")
    return config


def to_be_launched(config: Config) -> bool:
    """Whether the settings ask for several ranks that nobody has started yet."""
    return config.ranks > 1 and not torch.distributed.is_torchelastic_launched() and not _by_srun(config)


def _by_srun(config: Config) -> bool:
    """Whether this process is one of as many tasks of srun. SLURM_NTASKS would be there in a job's script too."""
    return config.ranks > 1 and os.environ.get("SLURM_STEP_NUM_TASKS") == str(config.ranks)


def launch(config: Config, arguments: list[str]) -> None:
    """Start the ranks of this node, each as a process with this command line, and wait for them.

    A signal is passed on to all. The first rank to fail ends the others. Raises `PeerError` where a rank died, and
    `SystemExit` with the exit code of a rank that has told its error itself. With several nodes, MASTER_ADDR,
    MASTER_PORT and NODE_RANK say where they meet.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    job = LaunchConfig(config.nodes, config.nodes, config.devices, run_id=NAME, max_restarts=0, **_meeting(config))
    try:
        elastic_launch(job, sys.executable)("-m", "ccrepro", *arguments)
    except ChildFailedError as error:
        # The first; but that it lost another has a cause, which may have been seen at the same moment.
        rank, failure = min(
            error.failures.items(), key=lambda f: (f[1].exitcode == PeerError.exit_code, f[1].timestamp)
        )
        where = f"rank {rank} of {config.ranks}, process {failure.pid}"
        if failure.exitcode == PeerError.exit_code:
            raise PeerError(LOST, where, "All must live, on all machines", GO_ON) from None
        if failure.exitcode > 1:
            raise SystemExit(failure.exitcode) from None
        ended = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else "an error, told above"
        what = f"a process ended by {ended}"
        raise PeerError(what, where, "All must live; the others were stopped", GO_ON) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None  # rank 0 has told it


def _meeting(config: Config) -> dict[str, Any]:
    """Where the nodes meet."""
    if config.nodes == 1:
        # The address too: ranks would be told this machine's name, which need not be known to it.
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    missing = [name for name in names if name not in os.environ]
    if missing:
        what, fix = f"nodes is {config.nodes}, but {missing[0]} is not set", f"Set {', '.join(missing)}, or use srun"
        raise ConfigError(what, "environment", "Each node must know the first one and its own number, from 0", fix)
    address, port, number = (os.environ[name] for name in names)
    if number not in map(str, range(config.nodes)):
        what, allowed = f"NODE_RANK is {number!r}", f"It must be from 0 to {config.nodes - 1}, another on each node"
        raise ConfigError(what, "environment", allowed, "Correct it")
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{address}:{port}",
        "rdzv_configs": {"rank": int(number)},
    }


@contextlib.contextmanager
def join(config: Config) -> Iterator[Ranks]:
    """The ranks of a run that has been launched, for the length of the block; one alone where it has one.

    What all ranks know, and what the one that launched them tells, is told once: the others exit with its code.
    """
    if config.ranks == 1:
        yield ALONE
        return
    together = _connect(config)
    try:
        with together.alive():
            yield together
        torch.distributed.destroy_process_group()
    except (Stopped, CheckpointError, NumericalError, PeerError) as error:
        if together.rank == 0 and not (isinstance(error, PeerError) and os.environ.get("TORCHELASTIC_RUN_ID") == NAME):
            raise
        raise SystemExit(error.exit_code) from None


def _connect(config: Config) -> Together:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "torch.distributed.nn.functional")  # which lightning-fabric gathers with
    warnings.filterwarnings("ignore", "The `srun` command is available")  # said in a job called "interactive", too
    # Running statistics need no broadcast: those of synchronised batch-norm are the same everywhere.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its name before 2.14
    # Named here: lightning-fabric takes no notice of srun in a job called "interactive", as salloc's are, and would
    # start more processes.
    environment = TorchElasticEnvironment if torch.distributed.is_torchelastic_launched() else SLURMEnvironment
    strategy = DDPStrategy(cluster_environment=environment(), **{sync: False})
    place = {"accelerator": choose_device(config).type, "devices": config.devices, "num_nodes": config.nodes}
    fabric = Fabric(strategy=strategy, **place)
    fabric.launch()
    return Together(fabric)
