"""Files that are whole or absent, and weights without pickle."""

import os
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save
from torch import nn


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that nobody ever sees half of it: temporary name in the same folder, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def save_weights(model: nn.Module, path: str | Path) -> Path:
    """The model's state as safetensors."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return atomic_write(path, save(tensors))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load what `save_weights` wrote into a model of the same shape."""
    model.load_state_dict(load_file(path))
