"""The settings for a user's own images."""

from typing import Any

from ccrepro.config import Config
from ccrepro.errors import ConfigError
from ccrepro.recipes import FAST, OWN, check_fits, recipe


def own_recipe(n_clusters: int, n_images: int, shape: tuple[int, int, int], pretrained: bool, **chosen: Any) -> Config:
    """The settings for anybody's images: N of ``shape`` (C, H, W), and what the caller has ``chosen``.

    Images of up to 64 pixels are seen as they are, through the 3×3 stem; larger ones at 128, through ImageNet's, as are
    all with a pretrained backbone. A batch is an eighth of the images, from 32 to 256 of them, and the learning rate is
    proportional to it.

    Raises `ConfigError` as `recipe` does, and where no cluster head would be trained.
    """
    recipe(OWN, OWN, n_clusters=n_clusters, **chosen)  # a mistake is told before it is reckoned with
    side, batch = min(shape[1:]), chosen.get("batch_size") or max(2, min(n_images, max(32, min(256, n_images // 8))))
    native = side <= 64 and not pretrained
    settings: dict[str, Any] = {"batch_size": batch, "lr": FAST["lr"] * int(batch) / FAST["batch_size"]}
    settings |= {"image_size": max(4, side) if native else 128, "stem": "cifar" if native else "imagenet"}
    settings |= {"backbone": "small" if side <= 32 and native else "resnet18"}
    if pretrained:
        settings |= {"lr": settings["lr"] / 10, "epochs": 30}  # so that the start is not lost in the first steps
    config = recipe(OWN, OWN, n_clusters=n_clusters, **{**settings, **chosen})
    if config.heads == "instance":
        raise ConfigError("heads is instance, which trains no cluster head. Use heads=both.")
    if config.baseline:
        raise ConfigError(f"baseline is {config.baseline}, but a model is trained here. Leave the setting out.")
    check_fits(config, n_images, "your set")
    return config
