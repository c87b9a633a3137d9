"""Weights on disk: whole or absent, and never silently damaged. Of others' pickles, only tensors are loaded.

A sealed file is a safetensors file whose metadata are a JSON text and, before it, the SHA-256 of text and tensors.
"""

import hashlib
import io
import json
import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from ccrepro.config import Config
from ccrepro.errors import CheckpointError, ConfigError, NotInstalled
from ccrepro.model import ContrastiveClusteringModel, build
from ccrepro.runtime import storage

SAVE_AGAIN = "Save it again with torch.save(model.state_dict(), FILE)."
# All that a pickled integer of numpy's needs, named as by numpy 1 and 2: torch itself allows nothing of numpy's.
SCALAR, INTEGERS = np.int64().__reduce__()[0], {type(np.dtype(code)) for code in np.typecodes["AllInteger"]}
NUMPY = [*((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")), np.dtype, *INTEGERS]


def save_sealed(path: str | Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> Path:
    """Write tensors and JSON values to one file. Raises `CheckpointError` when it cannot be written."""
    tensors, text = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, json.dumps(about)
    # One entry: safetensors writes several in any order, and equal models are to give equal files.
    return storage.atomic_write(path, save(tensors, {"sealed": sha256(tensors, text) + text}))


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_sealed` wrote. Raises `CheckpointError` for any other file, and for one that is damaged."""
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        sealed = (file.metadata() or {}).get("sealed")
    if sealed is None:
        raise CheckpointError(f"{path} holds weights without their settings. Give a model that this version saved.")
    seal, text = sealed[:64], sealed[64:]
    if seal != sha256(tensors, text):
        raise CheckpointError(f"{path} is damaged: it does not match its SHA-256. Remove it.")
    return tensors, json.loads(text)


def sha256(tensors: dict[str, Tensor], text: str = "") -> str:
    """SHA-256 of a text, and of the names, shapes and values of tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].cpu().numpy().tobytes())
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Nothing in the file can run.

    Raises `CheckpointError` for a file that is absent, of another kind or damaged, and for numbers that are not finite.
    """
    blob = _bytes(path)
    try:
        tensors = load(blob)
    except Exception:  # safetensors documents none for bytes that are no such file
        raise _unreadable(path, blob, "a safetensors file") from None
    check_finite(tensors, path)
    return tensors


def read_pickle(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, if it is tensors and plain values: nested dicts as one, their keys joined by dots.

    Raises `CheckpointError` for any other file: torch's ``weights_only`` refuses it.
    """
    blob = _bytes(path)
    try:
        with torch.serialization.safe_globals(NUMPY), warnings.catch_warnings(action="ignore"):  # of protocol 3
            return _flat(torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True))
    except Exception as error:  # torch documents none for bytes that are no pickle; its text recommends the unsafe way
        if refused := re.search(r"GLOBAL ([\w.]+)|Unsupported operand 149", str(error)):  # protocol 4 begins with 149
            what = f"{path} uses {refused[1] or 'pickle protocol 4 or later'}, which torch does not read safely"
            raise CheckpointError(f"{what}. {SAVE_AGAIN}") from None
        raise _unreadable(path, blob, "tensors alone as torch.save writes them") from None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items())
    return {name: value for part in parts for name, value in part.items()}


def below_prefix(values: dict[str, Any], name: str, path: str | Path) -> tuple[str, dict[str, Any]]:
    """The prefix that ``name`` has in a file, from whatever wrapped the network, and all values below it.

    Of several prefixes it is the shortest, the first of equals, and MoCo's encoder_k only where it is alone: what is
    averaged beside the trained network is left out. Raises `CheckpointError` where there is none.
    """
    prefixes = [found.removesuffix(name) for found in values if found.endswith(name)]
    if not prefixes:
        what = f"{path} holds no {name}, with or without a prefix, but {reason(list(values))}"
        raise CheckpointError(f"{what}. {SAVE_AGAIN}")
    prefix = min(prefixes, key=lambda prefix: ("encoder_k" in prefix, len(prefix)))
    return prefix, {found.removeprefix(prefix): v for found, v in values.items() if found.startswith(prefix)}


def check_finite(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Raise `CheckpointError` where a tensor that was read from ``path`` holds a number that is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"Values of {name} in {path} are not finite. Take an earlier file.")


def reason(error: object) -> str:
    """The start of an error's text, or of another object's, on one line."""
    return textwrap.shorten(str(error), 250, placeholder=" …")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from None


def _unreadable(path: Path, blob: bytes, kind: str) -> CheckpointError:
    """The error for a file of another kind, or a damaged one: how it begins shows which."""
    what = f"{path} is damaged, or not {kind}: {len(blob):,} bytes that begin with {blob[:24]!r}"
    return CheckpointError(f"{what}. Get it again from its source.")


def save_model(model: ContrastiveClusteringModel, config: Config, path: str | Path, **facts: Any) -> Path:
    """Save a trained model to one file, all that `load_model` needs: weights, settings, and ``facts`` (JSON values)."""
    about = {"config": config.model_dump(), "channels": model.channels, **facts}
    return save_sealed(path, model.state_dict(), about)


def load_model(path: str | Path) -> tuple[ContrastiveClusteringModel, Config, dict[str, Any]]:
    """The model in evaluation mode on the CPU, its settings, and the facts that were saved with it.

    path: a file of `save_model`, or a folder with a ``model.safetensors``, such as a finished run's. Raises
    `CheckpointError` for anything else and for a damaged file, and `NotInstalled` where a pretrained network needs a
    package.
    """
    path = storage.place(path)
    path = path / "model.safetensors" if path.is_dir() else path
    tensors, about = read_sealed(path)
    try:
        config, channels = Config.stored(about.pop("config")), about["channels"]
        model = _untrained(config, channels, about.get("pretrained", {}).get("name"))
        model.load_state_dict(tensors)
    except NotInstalled:
        raise
    except (ConfigError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} was saved by another version ({reason(error)}). Train it again.") from None
    return model.to(memory_format=torch.channels_last).eval(), config, about


def halve(source: Path, target: Path) -> Path:
    """Write a model's file anew in half precision, at half its size. `load_model` makes float32 weights of it."""
    tensors, about = read_sealed(source)
    return save_sealed(target, {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}, about)


def _untrained(config: Config, channels: int, pretrained_name: str | None) -> ContrastiveClusteringModel:
    if not pretrained_name:
        return build(config, channels)
    from ccrepro.runs import pretrained  # late: it needs this module

    return pretrained.on(pretrained.architecture(pretrained_name, config.image_size), config, pretrained_name)


# The authors' names of the model's parts, and ours. Within a part the names are the same.
PREFIXES = {"resnet.": "backbone.", "instance_projector.": "instance_head.", "cluster_projector.": "cluster_head."}


def load_authors(path: str | Path, config: Config) -> tuple[ContrastiveClusteringModel, int]:
    """Our model in evaluation mode with the weights of their ``checkpoint_N.tar``, and the epoch stored in it: they
    store n after n + 1 epochs.

    Raises `CheckpointError` for any other file, for names and shapes that are not exactly those of the settings'
    backbone, K and D, and for a value that is not finite.
    """
    path = storage.place(path)
    stored = read_pickle(path)
    _, net = below_prefix(stored, "resnet.conv1.weight", path)
    model, ours = build(config), {}
    for name, value in net.items():
        part, dot, rest = name.partition(".")
        ours[PREFIXES.get(part + dot, part + dot) + rest] = value
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:  # other names or shapes
        what = f"{path} does not hold the authors' {config.backbone}, K={config.n_clusters}, D={config.instance_dim}"
        fix = "Name its data set with --dataset and its network with --backbone"
        raise CheckpointError(f"{what}: {reason(error)}. {fix}.") from None
    check_finite(model.state_dict(), path)
    return model.to(memory_format=torch.channels_last).eval(), stored.get("epoch", 0)
