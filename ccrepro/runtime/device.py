"""What this machine is, what the setting ``auto`` means on it, and where images live on it."""

import contextlib
import os
import platform
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import torch
from torch import Tensor

from ccrepro.errors import ConfigError
from ccrepro.runtime.ragged import Ragged

RESIDENT_SHARE = 0.5  # of a GPU's free memory that a data set may take, to be kept there
AHEAD = 4  # batches that are read while training computes


def choose_device(name: str) -> torch.device:
    """The device of a setting: "cpu", "cuda", "mps", or "auto", which is a CUDA GPU where there is one, else the CPU.
    Raises `ConfigError` where the machine lacks it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name, True):
        raise ConfigError(f"No {name.upper()} device was found. Use device=cpu.")
    return torch.device(name if name != "auto" else "cuda" if available["cuda"] else "cpu")


def choose_precision(device: str, map_side: int) -> str:
    """bf16 where the hardware is fast in it and the network's first feature maps are larger than 8×8, else fp32."""
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # AMX is fast, and AMD's AVX512-BF16 is; Intel's is not
        amd = torch.cpu._is_avx512_bf16_supported() and "AMD" in cpu_name()
        fast = device == "cpu" and (amd or torch.cpu._is_amx_tile_supported())
    return "bf16" if fast and map_side > 8 else "fp32"


def choose_compile(device: str, map_side: int, ranks: int = 1) -> str:
    """The mode of `torch.compile`. It pays on one CUDA GPU; CUDA graphs help where small images leave it waiting."""
    if device != "cuda" or ranks > 1:
        return "off"
    return "reduce-overhead" if map_side <= 32 else "default"


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch have n threads on the CPU within the block, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Raise `ConfigError` where the block needs more memory than the GPU has. ``what`` names the settings in use."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = ". ".join(str(error).split(". ")[1:3])  # how much was asked for, and how much there is
        raise ConfigError(f"The GPU's memory is full with {what}: {said}. Lower batch_size.") from error


def cpu_name() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    return [name.strip() for name in named.split(",")][:count]


def at_once(jobs: int = 0) -> int:
    """How many processes to run at once: so many ``jobs``, or one for each GPU, or one for each core that is ours."""
    return jobs if jobs > 0 else len(visible_gpus()) or joblib.cpu_count()


def placed(images: Tensor | Ragged, device: torch.device) -> Tensor | Ragged:
    """The images on the GPU, if that is the device and they fit; otherwise as they are."""
    fits = device.type == "cuda" and images.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info()[0]
    return images.to(device) if fits else images


def fetched(images: Tensor | Ragged, order: Tensor, device: torch.device) -> Iterator[Tensor | Ragged]:
    """The images of each row of ``order``, int (steps, n), on the device.

    Images that are elsewhere are read by two threads, through pinned memory, while the last batch is in use. They are
    moved by the caller's thread: which GPU is the current one is each thread's own.
    """
    if images.device.type == device.type:
        yield from (images[rows] for rows in (order if isinstance(images, Ragged) else order.to(device)))
        return

    def read(rows: Tensor) -> Tensor | Ragged:
        return images[rows].pin_memory() if device.type == "cuda" else images[rows]

    with ThreadPoolExecutor(2) as pool:
        waiting = deque()
        for rows in order:
            waiting.append(pool.submit(read, rows))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result().to(device, non_blocking=True)
        yield from (batch.result().to(device, non_blocking=True) for batch in waiting)
