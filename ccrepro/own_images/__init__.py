"""Cluster your own images: the settings for them, the scikit-learn estimator, a folder from the command line."""

from typing import Any

import numpy as np

from ccrepro.config import Config
from ccrepro.errors import ConfigError
from ccrepro.recipes import FAST, OWN, check_fits, recipe
from ccrepro.runtime.ragged import Ragged, sizes_of

SMALL = 64  # pixels up to which images count as small: they are seen at their own size
PHOTO = 64  # pixels of the shorter side from which images count as photos
N_INIT = 20  # starts on a pretrained network
FEW = 5_000  # photos; on fewer, training from scratch is of little use
TOO_FEW = f"fewer than {FEW:,} photos are few to learn to see from; a pretrained backbone finds more in them"
# What differs on a pretrained network, whose trunk and heads alone are trained; chosen on photos with their labels in
# view, see docs/own_images.md.
PHOTOS = {
    **{"backbone": "pretrained", "precision": "fp32", "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0},
    **{"schedule": "constant", "warmup": 0.0, "batch_size": 256},
}


def usual_side(images: np.ndarray | Ragged) -> int:
    """The median of the shorter sides."""
    return int(np.median(sizes_of(images).min(1)))


def own_recipe(n_clusters: int, n_images: int, side: int, pretrained: int = 0, **chosen: Any) -> Config:
    """The settings for N images whose shorter side is ``side`` pixels. What the caller has ``chosen`` stays.

    pretrained: the side that a pretrained network takes images at, or 0, to train from scratch. Then images of up to 64
    pixels keep their size and get the 3×3 stem; larger ones are resized to 128 pixels and get ImageNet's stem. A batch
    is an eighth of the images, but at least 32 and at most 256; the learning rate is proportional to it. Raises
    `ConfigError` as `recipe` does, and without a cluster head to train.
    """
    recipe(OWN, OWN, n_clusters=n_clusters, **chosen)  # tells a mistake before the numbers are used
    if pretrained:
        if wrong := chosen.keys() & {"views", "stem", "normalize", "backbone"}:
            raise ConfigError(f"{', '.join(sorted(wrong))} cannot be set on a pretrained network. Train from scratch.")
        settings = {**PHOTOS, "image_size": pretrained, "batch_size": min(PHOTOS["batch_size"], n_images)}
        settings["epochs"] = max(5, min(60, 150_000 // n_images))
    else:
        native = side <= SMALL
        batch = chosen.get("batch_size") or max(2, min(n_images, max(32, min(256, n_images // 8))))
        settings = {"batch_size": batch, "lr": FAST["lr"] * int(batch) / FAST["batch_size"]}
        settings |= {"image_size": max(4, side) if native else 128, "stem": "cifar" if native else "imagenet"}
        settings |= {"backbone": "small" if side <= 32 else "resnet18"}
    config = recipe(OWN, OWN, n_clusters=n_clusters, **{**settings, **chosen})
    if config.heads == "instance" or config.baseline:
        raise ConfigError("heads=instance and baselines train no cluster head. Leave them out.")
    check_fits(config, n_images, "your set")
    return config
