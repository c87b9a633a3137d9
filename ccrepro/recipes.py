"""The recipes: presets × data sets, the one list of variants, and what a run is called.

``recipe("cifar10")`` is the published setting to the letter.
"""

import re
from typing import Any, NamedTuple

from ccrepro.config import Config
from ccrepro.data.registry import DATASETS
from ccrepro.errors import ConfigError, unknown

OWN = "own"  # in `Config.dataset` and `Config.preset`: a user's own images

SAMPLE = 10_000  # images at most, drawn at random with the run's seed, for what is slow on all


class Variant(NamedTuple):
    """What differs from the full method, in words and in settings, and the table of the paper that asks for it."""

    about: str
    table: str
    settings: dict[str, Any]


VARIANTS = {
    "cc": Variant("the full method", "2", {}),
    "views-one": Variant("T(x) and x in place of two augmented views", "3", {"views": "one"}),
    "views-none": Variant("x and x: no augmentation", "3", {"views": "none"}),
    "instance-only": Variant("no cluster head; k-means on the instance head's output", "4", {"heads": "instance"}),
    "cluster-only": Variant("no instance head", "4", {"heads": "cluster"}),
    "resnet18": Variant("another backbone", "5", {"backbone": "resnet18"}),
    "resnet50": Variant("another backbone", "5", {"backbone": "resnet50"}),
    "fast-m": Variant("another backbone", "5", {"backbone": "fast-m"}),
    "shared-head": Variant("both losses on one matrix, the assignments", "", {"heads": "shared"}),
    "no-entropy": Variant("no entropy term in the cluster loss", "", {"entropy_weight": 0.0}),
    "untrained": Variant("no training at all; at most 10,000 images", "", {"epochs": 0, "sample": SAMPLE}),
    "kmeans-pixels": Variant("k-means on raw pixels, ten starts", "2", {"baseline": "kmeans"}),
    "nmf-pixels": Variant("k-means on a non-negative factorisation of rank K", "2", {"baseline": "nmf"}),
    "spectral-pixels": Variant("spectral clustering", "2", {"baseline": "spectral", "sample": SAMPLE}),
    "agglomerative-pixels": Variant("Ward's linkage", "2", {"baseline": "agglomerative", "sample": SAMPLE}),
}

# Of Table 5's variants those that suit a preset: ResNets are too large for digits and for one core.
NETWORKS = {"demo": (), "laptop": ("fast-m",), "fast": ("resnet18", "resnet50"), "paper": ("resnet18", "resnet50")}

STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}  # jitter with s = 1 [code]

# What the fast preset changes everywhere: SCAN's optimiser and crops around the paper's two heads and two losses.
FAST = {
    "backbone": "resnet18", "crop_scale": (0.2, 1.0), "normalize": True, "precision": "auto",
    "optimizer": "sgd", "lr": 0.4, "weight_decay": 1e-4, "schedule": "cosine", "warmup": 0.025, "batch_size": 512,
}  # fmt: skip
FAST_SMALL = {**FAST, "backbone": "fast-m", "image_size": 32, "stem": "cifar", "epochs": 600}
# Images of 224 pixels and more: fewer of them, so smaller batches give more steps.
FAST_LARGE = {**FAST, **STRONG, "blur": 0.5, "batch_size": 256, "lr": 0.2}
# Minutes or hours of one core: a small network, small views, small batches.
LAPTOP = {
    **FAST, "backbone": "fast-s", "stem": "cifar", "image_size": 20,
    "batch_size": 256, "lr": 0.2, "warmup": 0.05, "epochs": 40,
}  # fmt: skip
LAPTOP_LARGE = {**LAPTOP, **STRONG, "image_size": 64, "batch_size": 128, "lr": 0.1}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {
        # Ours, for 8×8 grey images of digits: no flip (a mirrored 2 is no digit), no colour, gentler crops, and a
        # small affine map. Chosen with the labels of this data set in view; docs/settings.md lists what was tried.
        "digits": {
            "image_size": 8, "crop_scale": (0.5, 1.0), "flip": 0.0, "rotation": 15.0, "translation": 0.12,
            "shear": 11.0, "jitter": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0,
            "backbone": "small", "stem": "cifar", "instance_dim": 64,
            "lr": 3e-3, "schedule": "cosine", "batch_size": 128, "epochs": 50,
        },
    },
    "laptop": {
        "cifar10": LAPTOP,
        "cifar100": {**LAPTOP, "n_clusters": 20},
        # Untested: nobody has run these yet.
        "stl10": {**LAPTOP, **STRONG, "image_size": 48, "unlabeled": True},
        "imagenet10": {**LAPTOP_LARGE, "epochs": 100},
        "imagenet-dogs": {**LAPTOP_LARGE, "epochs": 100, "n_clusters": 15},
        "tiny-imagenet": {**LAPTOP, "image_size": 32, "n_clusters": 200},
    },
    "fast": {
        "cifar10": FAST_SMALL,
        "cifar100": {**FAST_SMALL, "n_clusters": 20},
        "stl10": {**FAST, **STRONG, "image_size": 96, "epochs": 200, "unlabeled": True},
        "imagenet10": {**FAST_LARGE, "epochs": 600},
        "imagenet-dogs": {**FAST_LARGE, "epochs": 400, "n_clusters": 15},
        "tiny-imagenet": {**FAST, "image_size": 64, "stem": "cifar", "epochs": 100, "n_clusters": 200},
        "imagenette": {**FAST_LARGE, "epochs": 600},
        "imagewoof": {**FAST_LARGE, "epochs": 600},
    },
    "paper": {
        "cifar10": {},
        "cifar100": {"n_clusters": 20},
        "stl10": {**STRONG, "unlabeled": True},
        "imagenet10": {**STRONG, "blur": 0.5},
        "imagenet-dogs": {**STRONG, "blur": 0.5, "n_clusters": 15},
        "tiny-imagenet": {"n_clusters": 200},
    },
    # For a user's own images: the fast preset. `own_recipe` adds what depends on how many they are and how large.
    "own": {OWN: {**FAST, "image_size": 32, "stem": "cifar", "batch_size": 32, "epochs": 100}},
}  # fmt: skip
PRESETS = tuple(name for name in RECIPES if name != OWN)  # that a reproduction may name


def suitable(preset: str) -> list[str]:
    """The variants that a reproduction runs where none is named."""
    return [name for name, v in VARIANTS.items() if v.table != "5" or name in NETWORKS.get(preset, ())]


def recipe(dataset: str, preset: str = "paper", variant: str = "cc", seed: int = 0, **overrides: Any) -> Config:
    """The settings of one run: data set, preset, variant, seed, and what the caller changes.

    Raises `ConfigError` for an unknown name, for a data set without a recipe in this preset, for a bad value, and for
    more clusters, or a larger batch, than there are images.
    """
    if preset not in RECIPES:
        raise unknown("preset", preset, PRESETS)
    if dataset not in RECIPES[preset]:
        others = [other for other in PRESETS if dataset in RECIPES[other]]
        if not others:
            raise unknown("data set", dataset, DATASETS, "For your own images, use `ccrepro cluster FOLDER`.")
        raise ConfigError(f"The preset {preset} has no recipe for {dataset}. Use preset={others[0]}.")
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    settings = {**RECIPES[preset][dataset], **VARIANTS[variant].settings, **overrides}
    config = Config(dataset=dataset, preset=preset, variant=variant, seed=seed, **settings)
    if dataset != OWN:
        facts = DATASETS[dataset]
        check_fits(config, facts.images, facts.title)
        if config.unlabeled and not facts.unlabeled:
            raise ConfigError(f"{facts.title} has no unlabeled images. Leave the setting unlabeled out.")
    return config


def check_fits(config: Config, n_images: int, title: str) -> None:
    """Raise `ConfigError` where a data set has fewer images than clusters, or than a batch takes."""
    for name in ("n_clusters",) if config.baseline else ("n_clusters", "batch_size"):
        value = getattr(config, name)
        if value > n_images:
            raise ConfigError(f"{name} is {value}, but {title} has {n_images} images. Choose a smaller one.")


def overrides(config: Config) -> dict[str, Any]:
    """The settings that differ from the recipe. Settings of the machine do not count."""
    return config.differences(recipe(config.dataset, config.preset, config.variant, config.seed))


def departures(changed: dict[str, Any]) -> str:
    """How a run's name states its `overrides`: "10ep-16px", for example; "" where there are none."""
    short = {"epochs": "{}ep", "image_size": "{}px"}
    parts = [text.format(changed[name]) for name, text in short.items() if name in changed]
    parts += [f"{name}={value}" for name, value in changed.items() if name not in short]
    return re.sub(r"[^\w.,+=-]", "", "-".join(parts))


def run_name(config: Config) -> str:
    """The folder of a run below ``runs/``, such as laptop/cifar10/cc-10ep-16px-seed0."""
    parts = filter(None, (config.variant, departures(overrides(config)), f"seed{config.seed}"))
    return f"{config.preset}/{config.dataset}/{'-'.join(parts)}"
