import pytest

from ccrepro.errors import ConfigError
from ccrepro.own_images import own_recipe
from ccrepro.recipes import OWN


@pytest.mark.parametrize(
    ("n", "side", "pretrained", "expected"),
    [
        (100, 8, 0, {"backbone": "small", "stem": "cifar", "image_size": 8, "batch_size": 32, "lr": 0.025}),
        (1000, 64, 0, {"backbone": "resnet18", "stem": "cifar", "image_size": 64, "batch_size": 125}),
        (9000, 300, 0, {"backbone": "resnet18", "stem": "imagenet", "image_size": 128, "batch_size": 256}),
        (100, 300, 224, {"backbone": "pretrained", "image_size": 224, "batch_size": 100, "lr": 0.001, "epochs": 60}),
        (30_000, 32, 160, {"backbone": "pretrained", "image_size": 160, "batch_size": 256, "epochs": 5}),
        (20, 3, 0, {"image_size": 4, "batch_size": 20}),
    ],
)
def test_settings_for_anybodys_images_follow_their_number_and_size(n, side, pretrained, expected):
    config = own_recipe(5, n, side, pretrained)
    assert {name: getattr(config, name) for name in expected} == pytest.approx(expected)
    assert (config.dataset, config.preset, config.n_clusters) == (OWN, OWN, 5)
    assert own_recipe(5, n, side, pretrained, epochs=3, lr=0.1).lr == 0.1


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"n_clusters": 21}, "n_clusters is 21, but your set has 20 images"),
        ({"heads": "instance"}, "heads=instance and baselines"),
        ({"baseline": "kmeans"}, "heads=instance and baselines"),
        ({"pretrained": 224, "views": "one", "stem": "cifar"}, "stem, views cannot be set on a pretrained network"),
    ],
)
def test_settings_that_anybodys_images_cannot_have(chosen, told):
    with pytest.raises(ConfigError, match=told):
        own_recipe(**{"n_clusters": 5, "n_images": 20, "side": 32, "pretrained": 0, **chosen})
