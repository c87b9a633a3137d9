"""A model whose backbone starts from torchvision's ImageNet weights."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from ccrepro.config import Config
from ccrepro.errors import CheckpointError
from ccrepro.model import ContrastiveClusteringModel, build
from ccrepro.runs.weights import read_pickle, read_tensors

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels torchvision trained with


def start(config: Config, channels: int, source: str) -> ContrastiveClusteringModel:
    """A model with untrained heads, and with torchvision's ImageNet weights in its backbone. It standardizes images
    with the mean and standard deviation that these weights were trained with.

    source: "imagenet", which downloads the weights once, or a file: torchvision's .pth, or a safetensors file with the
    same names. Raises `CheckpointError` for weights that cannot be read, or are of another backbone.
    """
    if config.backbone == "small" or config.stem != "imagenet" or channels != 3:
        what = f"No ImageNet weights fit {channels} channels, backbone {config.backbone} and the {config.stem} stem"
        raise CheckpointError(f"{what}. Use colour images, backbone=resnet18 and stem=imagenet.")
    model, found = build(config, channels), _read(source, config.backbone)
    try:
        model.backbone.load_state_dict({name: value for name, value in found.items() if not name.startswith("fc.")})
    except (AttributeError, TypeError, RuntimeError):  # no dict of names, or other names and shapes
        what = f"{source} does not hold a {config.backbone} as torchvision saves it"
        raise CheckpointError(f"{what}. Choose the backbone of the file.") from None
    if config.normalize:
        model.standardize.mean.copy_(torch.tensor(IMAGENET_MEAN)[:, None, None])
        model.standardize.deviation.copy_(torch.tensor(IMAGENET_SD)[:, None, None])
    return model


def _read(source: str, backbone: str) -> dict[str, Tensor]:
    if source != "imagenet":
        path = Path(source)
        return read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    weights = get_model_weights(backbone).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
        what = f"Cannot download {weights.url}: {' '.join(str(error).split())}"
        raise CheckpointError(f"{what}. Put the file at {place}, or give a file as pretrained.") from None
