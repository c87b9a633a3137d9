"""Read the checkpoints of the authors' code. They come as pickles, of which only tensors and plain values are loaded.

Letters: D instance dimension, K clusters.
"""

from pathlib import Path

import torch
from torch import Tensor

from ccrepro.config import Config
from ccrepro.errors import CheckpointError
from ccrepro.model import ContrastiveClusteringModel, build
from ccrepro.runs.weights import read_pickle

# The parts of the model under the authors' names, and under ours; below these, all names are torchvision's.
PREFIXES = {"resnet.": "backbone.", "instance_projector.": "instance_head.", "cluster_projector.": "cluster_head."}


def load_authors(path: str | Path, config: Config) -> tuple[ContrastiveClusteringModel, int]:
    """The weights of ``checkpoint_N.tar``, a dict with ``net`` and perhaps ``epoch``, in our model, in evaluation mode;
    and the epoch as stored: their number n is written after n + 1 epochs.

    Raises `CheckpointError` for any other file, for one that would need more than tensors to load, where names and
    shapes are not exactly those of the settings' backbone, K and D, and where a value is not finite.
    """
    path = Path(path)
    stored = read_pickle(path)
    net = stored.get("net") if isinstance(stored, dict) else None
    if not isinstance(net, dict) or not all(isinstance(value, Tensor) for value in net.values()):
        keys = f" but {', '.join(map(repr, list(stored)[:5]))}" if isinstance(stored, dict) else ""
        raise CheckpointError(f"{path} holds no dict 'net' of tensors{keys}. Give the authors' checkpoint_N.tar.")
    weights, model = {_ours(name): value for name, value in net.items()}, build(config)
    if wrong := _differences(weights, model.state_dict()):
        what = f"{path} does not hold the authors' {config.backbone}, K={config.n_clusters}, D={config.instance_dim}"
        raise CheckpointError(f"{what}: {wrong}. Name its data set with --dataset and its network with --backbone.")
    for name, value in weights.items():
        if not value.isfinite().all():
            raise CheckpointError(f"Values in {name} of {path} are not finite. Take an earlier checkpoint.")
    model.load_state_dict(weights)
    return model.to(memory_format=torch.channels_last).eval(), stored.get("epoch", 0)


def _ours(name: str) -> str:
    name = name.removeprefix("module.")  # as DataParallel saves it
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return PREFIXES.get(prefix, "") + name.removeprefix(prefix)


def _differences(there: dict[str, Tensor], here: dict[str, Tensor]) -> str:
    """In what names and shapes differ; nothing where they are the same."""
    odd = sorted(there.keys() ^ here.keys())
    if odd:
        return f"{len(here.keys() - there)} tensors missing, {len(there.keys() - here)} unknown, such as {odd[0]}"
    shapes = ((name, tuple(there[name].shape), tuple(here[name].shape)) for name in here)
    return next((f"{name} is {found}, not {own}" for name, found, own in shapes if found != own), "")
