"""A model whose backbone starts from weights that others trained, such as torchvision's of ImageNet."""

from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model_weights

from ccrepro.config import Config
from ccrepro.errors import CheckpointError
from ccrepro.model import ContrastiveClusteringModel, build
from ccrepro.runs.weights import below_prefix, check_finite, read_pickle, read_tensors, reason
from ccrepro.runtime import storage

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels torchvision trained with


def start(config: Config, channels: int, source: str) -> ContrastiveClusteringModel:
    """A model with untrained heads, and with the weights of ``source`` in its backbone. It standardizes images with the
    mean and standard deviation that torchvision's ImageNet weights were trained with.

    source: "imagenet", which downloads torchvision's once, or a file of `torch.save` or safetensors with torchvision's
    names, below any prefix. What stands beside the backbone's own modules, such as heads, is left out. Raises
    `CheckpointError` for weights that cannot be read, are not finite, or are of another backbone.
    """
    if not config.backbone.startswith("resnet") or config.stem != "imagenet" or channels != 3:
        what = f"No ImageNet weights fit {channels} channels, backbone {config.backbone} and the {config.stem} stem"
        raise CheckpointError(f"{what}. Use colour images, backbone=resnet18 and stem=imagenet.")
    model, found = build(config, channels), _read(source, config.backbone)
    prefix, found = below_prefix(found, "layer1.0.conv1.weight", source)
    own = dict(model.backbone.named_children())
    try:
        model.backbone.load_state_dict({name: value for name, value in found.items() if name.partition(".")[0] in own})
    except RuntimeError as error:  # other names or shapes
        what = f"{source} does not hold a {config.backbone} below the prefix {prefix!r}: {reason(error)}"
        raise CheckpointError(f"{what}. Choose the backbone of the file.") from None
    check_finite(model.backbone.state_dict(), source)
    if config.normalize:
        model.standardize.mean.copy_(torch.tensor(IMAGENET_MEAN)[:, None, None])
        model.standardize.deviation.copy_(torch.tensor(IMAGENET_SD)[:, None, None])
    return model


def _read(source: str, backbone: str) -> dict[str, Any]:
    if source != "imagenet":
        path = storage.place(source)
        return read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    weights = get_model_weights(backbone).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, of the file system, or since the hash differs
        place = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
        what = f"Cannot download {weights.url}: {' '.join(str(error).split())}"
        raise CheckpointError(f"{what}. Put the file at {place}, or give a file as pretrained.") from None
