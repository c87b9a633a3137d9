import itertools

import pytest

from ccrepro.config import Config
from ccrepro.data.registry import DATASETS
from ccrepro.errors import ConfigError
from ccrepro.recipes import RECIPES, check_fits, overrides, recipe, run_name, suitable

# The published settings (§4.1 and §4.2 of the paper, the authors' code where it is silent), written out.
PUBLISHED = {
    "image_size": 224, "backbone": "resnet34", "stem": "imagenet", "instance_dim": 128,
    "instance_temperature": 0.5, "cluster_temperature": 1.0, "entropy_weight": 1.0,
    "lr": 0.0003, "schedule": "constant", "batch_size": 256, "epochs": 1000,
    "crop_scale": (0.08, 1.0), "flip": 0.5, "jitter": 0.8, "grayscale": 0.2,
    "rotation": 0.0, "translation": 0.0, "shear": 0.0, "views": "both", "heads": "both", "baseline": "", "sample": 0,
    "normalize": False, "optimizer": "adam", "weight_decay": 0.0, "warmup": 0.0, "precision": "fp32",
    "device": "auto", "threads": 1, "compile": "auto",
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
def test_paper_preset_is_the_published_setting(dataset):
    names = {"dataset": dataset, "preset": "paper", "variant": "cc", "seed": 3}
    assert recipe(dataset, "paper", seed=3).model_dump() == {**PUBLISHED, **PAPER[dataset], **names}


def test_config_recipe_and_paper_are_one_set_of_defaults():
    assert recipe("cifar10") == Config()


def test_data_sets_are_those_of_table_1():
    assert {name: (facts.images, facts.classes) for name, facts in DATASETS.items() if name in PAPER} == {
        "cifar10": (60_000, 10), "cifar100": (60_000, 20), "stl10": (13_000, 10),
        "imagenet10": (13_000, 10), "imagenet-dogs": (19_500, 15), "tiny-imagenet": (100_000, 200),
    }  # fmt: skip


def test_fast_preset_has_all_data_sets_of_the_paper_and_the_stand_ins():
    assert set(RECIPES["paper"]) == set(PAPER)
    assert set(RECIPES["fast"]) == {*PAPER, "imagenette", "imagewoof"}


def test_laptop_preset_is_one_small_network_for_all_data_sets_of_the_paper():
    assert set(RECIPES["laptop"]) == set(PAPER)
    for dataset in PAPER:
        config = recipe(dataset, "laptop")
        assert (config.backbone, config.precision, config.n_clusters) == (
            "fast-s",
            "auto",
            PAPER[dataset]["n_clusters"],
        )
        assert config.image_size <= 64
    assert recipe("cifar10", "laptop", epochs=40, image_size=20) == recipe("cifar10", "laptop")
    assert recipe("cifar10", "fast").backbone == "fast-m"
    assert recipe("cifar10", "fast", "resnet18").backbone == "resnet18"


@pytest.mark.parametrize("preset", RECIPES)
def test_every_recipe_of_every_suitable_variant_is_valid_and_has_no_overrides(preset):
    for dataset, variant in itertools.product(RECIPES[preset], suitable(preset)):
        assert overrides(recipe(dataset, preset, variant, device="cpu")) == {}


def test_a_run_is_named_by_its_recipe_and_what_differs_from_it():
    assert run_name(recipe("cifar10", "fast", "no-entropy", seed=3)) == "fast/cifar10/no-entropy-seed3"
    changed = recipe("digits", "demo", epochs=5, crop_scale=(0.2, 1), threads=2)
    assert overrides(changed) == {"epochs": 5, "crop_scale": (0.2, 1.0)}
    assert run_name(changed) == "demo/digits/cc-5ep-crop_scale=0.2,1.0-seed0"


BAD = [  # settings, and what the message must name: the value, and the rule or the nearest name
    ({"dataset": "mnist"}, "'mnist'", "digits"),
    ({"dataset": "cifar10"}, "preset demo", "preset=laptop"),
    ({"preset": "fastest"}, "'fastest'", "'fast'"),
    ({"variant": "cluster-onyl"}, "'cluster-onyl'", "'cluster-only'"),
    ({"epoch": 1}, "'epoch'", "'epochs'"),
    ({"zzz": 1}, "'zzz'", "'lr'"),
    ({"backbone": "fast-s"}, "image_size is 8", "at least 9"),
    ({"n_clusters": 1798}, "n_clusters is 1798", "1797 images"),
    ({"batch_size": 1798}, "batch_size is 1798", "1797 images"),
    ({"unlabeled": True}, "no unlabeled images", "Leave"),
    ({"lr": 0}, "lr is 0", "greater than 0"),
]


@pytest.mark.parametrize(("settings", "what", "allowed"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_settings_are_named_with_what_is_allowed(settings, what, allowed):
    with pytest.raises(ConfigError) as caught:
        recipe(**{"dataset": "digits", "preset": "demo", **settings})
    assert what in str(caught.value)
    assert allowed in str(caught.value)


def test_a_baseline_needs_no_batch():
    check_fits(recipe("digits", "demo", "kmeans-pixels"), 20, "your set")
    with pytest.raises(ConfigError, match="batch_size is 128, but your set has 20 images"):
        check_fits(recipe("digits", "demo"), 20, "your set")
