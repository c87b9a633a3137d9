"""What this machine is, and how a run is carried out on it: every ``auto`` of the settings is decided here."""

import contextlib
import dataclasses
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from ccrepro.config import Config
from ccrepro.errors import ConfigError


def resolve(config: Config) -> Config:
    """The settings with every ``auto`` decided for this machine.

    bf16 pays where the hardware has it and the network's maps are larger than 8×8; compiling pays on a GPU of its own,
    with CUDA graphs where small pictures leave it waiting for the host. Raises `ConfigError` without a GPU that is
    asked for.
    """
    device, precision, mode = choose_device(config).type, config.precision, config.compile
    side = config.image_size // (4 if config.stem == "imagenet" else 1)
    if precision == "auto":
        units = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else fast_bf16()
        precision = "bf16" if units and side > 8 else "fp32"
    if mode == "auto":
        mode = "off" if device == "cpu" or config.ranks > 1 else "reduce-overhead" if side <= 32 else "default"
    return dataclasses.replace(config, device=device, precision=precision, compile=mode)


def choose_device(config: Config) -> torch.device:
    """Raises `ConfigError` when CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        what = "no CUDA device found" + (f", CUDA_VISIBLE_DEVICES is {visible!r}" if visible is not None else "")
        raise ConfigError(what, "setting device", "Known here: 'auto', 'cpu'", "Use device=cpu")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


@contextlib.contextmanager
def within_memory(config: Config) -> Iterator[None]:
    """Raise `ConfigError` where the block needs more memory than the GPU has."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what, where = "the GPU's memory is full", f"batch_size {config.batch_size}, image_size {config.image_size}"
        said = ". ".join(str(error).split(". ")[1:3])  # how much was asked for, and how much there is
        raise ConfigError(what, where, said, "Lower batch_size, or end what else runs there") from error


def fast_bf16() -> bool:
    """Whether this CPU computes faster in bf16: with AMX, or with AVX512-BF16 as AMD makes it.

    On an AMD EPYC a step of ResNet18 on 32 pixels took 0.48 of the time in fp32; on an Intel Xeon whose AVX512-BF16 was
    without AMX, 1.2 times as long.
    """
    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and "AMD" in cpu_name())


def cpu_name() -> str:
    """The processor's name as its maker prints it, where the system tells."""
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        if names:
            return names[0]
    return platform.processor() or platform.machine()
