"""Weights on disk, without pickle."""

from pathlib import Path

from safetensors.torch import load_file, save
from torch import nn

from ccrepro.files import atomic_write


def save_weights(model: nn.Module, path: str | Path) -> Path:
    """The model's state as safetensors."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return atomic_write(path, save(tensors))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load what `save_weights` wrote into a model of the same shape."""
    model.load_state_dict(load_file(path))
