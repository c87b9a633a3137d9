"""Read the checkpoints of the authors' code: pickles, of which only tensors and plain values are loaded.

Letters: D instance dimension, K clusters.
"""

from pathlib import Path

import torch
from torch import Tensor

from ccrepro.config import Config
from ccrepro.errors import CheckpointError
from ccrepro.model import ContrastiveClusteringModel, build
from ccrepro.runs.weights import check_finite, read_pickle, reason

# The authors' names of the model's parts, and ours. Within a part the names are the same.
PREFIXES = {"resnet.": "backbone.", "instance_projector.": "instance_head.", "cluster_projector.": "cluster_head."}


def load_authors(path: str | Path, config: Config) -> tuple[ContrastiveClusteringModel, int]:
    """Our model in evaluation mode with the weights of their ``checkpoint_N.tar``, and the epoch stored in it: they
    store n after n + 1 epochs.

    Raises `CheckpointError` for any other file, for names and shapes that are not exactly those of the settings'
    backbone, K and D, and for a value that is not finite.
    """
    path = Path(path)
    stored = read_pickle(path)
    net = stored.get("net") if isinstance(stored, dict) else None
    if not isinstance(net, dict) or not all(isinstance(value, Tensor) for value in net.values()):
        raise CheckpointError(f"{path} holds no dict 'net' of tensors. Give the authors' checkpoint_N.tar.")
    model, ours = build(config), {}
    for name, value in net.items():
        part, dot, rest = name.removeprefix("module.").partition(".")  # DataParallel adds "module."
        ours[PREFIXES.get(part + dot, part + dot) + rest] = value
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:  # other names or shapes
        what = f"{path} does not hold the authors' {config.backbone}, K={config.n_clusters}, D={config.instance_dim}"
        fix = "Name its data set with --dataset and its network with --backbone"
        raise CheckpointError(f"{what}: {reason(error)}. {fix}.") from None
    check_finite(model.state_dict(), path)
    return model.to(memory_format=torch.channels_last).eval(), stored.get("epoch", 0)
