import dataclasses

import pytest

from ccrepro.config import DATASETS, RECIPES, VARIANTS, Config, check_fits, recipe
from ccrepro.errors import ConfigError

# The published settings (§4.1 and §4.2 of the paper, the authors' code where it is silent), written out.
PUBLISHED = {
    "image_size": 224, "backbone": "resnet34", "stem": "imagenet", "instance_dim": 128,
    "instance_temperature": 0.5, "cluster_temperature": 1.0, "entropy_weight": 1.0,
    "lr": 0.0003, "schedule": "constant", "batch_size": 256, "epochs": 1000,
    "crop_scale": (0.08, 1.0), "crop_ratio": (0.75, 4 / 3), "flip": 0.5, "jitter": 0.8, "grayscale": 0.2,
    "blur_kernel": 23, "blur_sigma": (0.1, 2.0), "rotation": 0.0, "translation": 0.0, "shear": 0.0,
    "views": "both", "heads": "both", "baseline": "", "sample": 0, "device": "auto", "threads": 1, "compile": "auto",
    "devices": 1, "nodes": 1, "normalize": False, "pretrained": "", "head_norm": False, "optimizer": "adam",
    "weight_decay": 0.0, "warmup": 0.0, "precision": "fp32", "checkpoint_seconds": 10.0,
}  # fmt: skip
HALF = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
FULL = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
PAPER = {
    "cifar10": {"n_clusters": 10, **HALF, "blur": 0.0, "unlabeled": False},
    "cifar100": {"n_clusters": 20, **HALF, "blur": 0.0, "unlabeled": False},
    "stl10": {"n_clusters": 10, **FULL, "blur": 0.0, "unlabeled": True},
    "imagenet10": {"n_clusters": 10, **FULL, "blur": 0.5, "unlabeled": False},
    "imagenet-dogs": {"n_clusters": 15, **FULL, "blur": 0.5, "unlabeled": False},
    "tiny-imagenet": {"n_clusters": 200, **HALF, "blur": 0.0, "unlabeled": False},
}


@pytest.mark.parametrize("dataset", PAPER)
def test_paper_profile_is_the_published_setting(dataset):
    names = {"dataset": dataset, "profile": "paper", "variant": "cc", "seed": 3}
    assert dataclasses.asdict(recipe(dataset, profile="paper", seed=3)) == {**PUBLISHED, **PAPER[dataset], **names}


def test_data_sets_are_those_of_table_1():
    table_1 = {name: tuple(facts[1:3]) for name, facts in DATASETS.items() if name in PAPER}
    assert table_1 == {
        "cifar10": (60_000, 10), "cifar100": (60_000, 20), "stl10": (13_000, 10),
        "imagenet10": (13_000, 10), "imagenet-dogs": (19_500, 15), "tiny-imagenet": (100_000, 200),
    }  # fmt: skip


@pytest.mark.parametrize("profile", RECIPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_recipe_of_every_variant_is_valid_and_has_no_overrides(profile, variant):
    for dataset in RECIPES[profile]:
        assert recipe(dataset, profile, variant, device="cpu").overrides() == {}


def test_overrides_are_what_differs_from_the_recipe():
    assert recipe("digits", epochs=5, lr=1e-2).overrides() == {"epochs": 5, "lr": 1e-2}


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe("digits").epochs = 3


def test_values_may_come_as_text():
    config = recipe("digits", epochs="7", lr="3e-4", crop_scale="0.2,1", entropy_weight=2)
    assert (config.epochs, config.lr, config.crop_scale, config.entropy_weight) == (7, 3e-4, (0.2, 1.0), 2.0)
    assert recipe("stl10", "paper", unlabeled="False").unlabeled is False


BAD = [
    ({"dataset": "mnist"}, "'mnist'", "digits"),
    ({"dataset": "cifar10"}, "profile demo", "profile=fast"),
    ({"profile": "fastest"}, "'fastest'", "demo"),
    ({"variant": "cluster-onyl"}, "'cluster-onyl'", "Write 'cluster-only'"),
    ({"seed": "banana"}, "seed is 'banana'", "an integer"),
    ({"seed": -1}, "seed is -1", "from 0"),
    ({"sede": 1}, "'sede'", "Known"),
    ({"epoch": 1}, "'epoch'", "Write 'epochs'"),
    ({"epochs": -1}, "epochs is -1", "at least 0"),
    ({"epochs": 2.5}, "epochs is 2.5", "an integer"),
    ({"epochs": True}, "epochs is True", "an integer"),
    ({"n_clusters": 1}, "n_clusters is 1", "at least 2"),
    ({"n_clusters": 1798}, "1797 images", "at most 1797"),
    ({"batch_size": 1798}, "1797 images", "at most 1797"),
    ({"batch_size": float("inf")}, "batch_size is inf", "an integer"),
    ({"instance_temperature": 0}, "instance_temperature is 0", "above 0"),
    ({"cluster_temperature": -0.5}, "cluster_temperature is -0.5", "above 0"),
    ({"lr": "fast"}, "lr is 'fast'", "a number"),
    ({"lr": float("nan")}, "lr is nan", "a number"),
    ({"lr": float("inf")}, "lr is inf", "above 0"),
    ({"flip": 1.5}, "flip is 1.5", "from 0 to 1"),
    ({"crop_scale": (0.9, 0.1)}, "crop_scale is (0.9, 0.1)", "the smaller first"),
    ({"crop_scale": 0.5}, "crop_scale is 0.5", "two numbers"),
    ({"blur_kernel": 4}, "blur_kernel is 4", "odd"),
    ({"backbone": "resnet43"}, "'resnet43'", "'resnet34'"),
    ({"unlabeled": "maybe"}, "unlabeled is 'maybe'", "true or false"),
    ({"unlabeled": True}, "no unlabeled images", "stl10"),
    ({"views": 2}, "views is 2", "a text"),
]


@pytest.mark.parametrize(("settings", "what", "allowed"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_settings_are_named_with_what_is_allowed(settings, what, allowed):
    with pytest.raises(ConfigError) as caught:
        recipe(**{"dataset": "digits", **settings})
    message = str(caught.value)
    assert what in message
    assert allowed in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_baseline_needs_no_batch():
    check_fits(recipe("digits", variant="kmeans-pixels"), 20, "twenty images")
    with pytest.raises(ConfigError, match="batch_size is 128, but twenty images has 20 images"):
        check_fits(recipe("digits"), 20, "twenty images")


def test_config_and_recipe_check_alike():
    with pytest.raises(ConfigError, match="temperature"):
        Config(instance_temperature=0)
