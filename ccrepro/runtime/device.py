"""What this machine is, and what the setting ``auto`` means on it."""

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from ccrepro.errors import ConfigError


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return jobs if jobs > 0 else len(visible_gpus()) or cores
