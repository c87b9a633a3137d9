"""Cluster your own images: the settings for them, the scikit-learn estimator, a folder from the command line."""

from typing import Any

import numpy as np

from ccrepro.config import Config
from ccrepro.errors import ConfigError
from ccrepro.recipes import FAST, OWN, check_fits, recipe
from ccrepro.runtime.ragged import Ragged, sizes_of


def usual_side(images: np.ndarray | Ragged) -> int:
    """The median of the shorter sides."""
    return int(np.median(sizes_of(images).min(1)))


def own_recipe(n_clusters: int, n_images: int, side: int, pretrained: bool, **chosen: Any) -> Config:
    """The settings for N images whose shorter side is ``side`` pixels. What the caller has ``chosen`` stays.

    Images of up to 64 pixels keep their size and get the 3×3 stem. Larger ones, and all with a pretrained backbone, are
    resized to 128 pixels and get ImageNet's stem. A batch is an eighth of the images, but at least 32 and at most 256;
    the learning rate is proportional to it. Raises `ConfigError` as `recipe` does, and without a cluster head to train.
    """
    recipe(OWN, OWN, n_clusters=n_clusters, **chosen)  # tells a mistake before the numbers are used
    batch = chosen.get("batch_size") or max(2, min(n_images, max(32, min(256, n_images // 8))))
    native = side <= 64 and not pretrained
    settings: dict[str, Any] = {"batch_size": batch, "lr": FAST["lr"] * int(batch) / FAST["batch_size"]}
    settings |= {"image_size": max(4, side) if native else 128, "stem": "cifar" if native else "imagenet"}
    settings |= {"backbone": "small" if side <= 32 and native else "resnet18"}
    if pretrained:
        settings |= {"lr": settings["lr"] / 10, "epochs": 30}  # so that the start is not lost in the first steps
    config = recipe(OWN, OWN, n_clusters=n_clusters, **{**settings, **chosen})
    if config.heads == "instance" or config.baseline:
        raise ConfigError("heads=instance and baselines train no cluster head. Leave them out.")
    check_fits(config, n_images, "your set")
    return config
