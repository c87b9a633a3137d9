"""Settings of a run: one frozen dataclass, the recipes of each profile, and the one validator.

``recipe("cifar10", profile="paper")`` is the published setting to the letter. The defaults of `Config` are the
paper's for CIFAR-10; a recipe states only what differs. Sources stand in brackets: "§" is a section of the paper
(Li et al., Contrastive Clustering, AAAI 2021), "code" the authors' published code where the paper is silent.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ccrepro.errors import ConfigError, unknown


class Facts(NamedTuple):
    """What is known of a data set before it is loaded (Table 1 of the paper for its six)."""

    title: str
    images: int
    classes: int
    unlabeled: int = 0


DATASETS = {
    "digits": Facts("Digits", 1_797, 10),
    "cifar10": Facts("CIFAR-10", 60_000, 10),
    "cifar100": Facts("CIFAR-100", 60_000, 20),  # the 20 superclasses
    "stl10": Facts("STL-10", 13_000, 10, unlabeled=100_000),
    "imagenet10": Facts("ImageNet-10", 13_000, 10),
    "imagenet-dogs": Facts("ImageNet-Dogs", 19_500, 15),
    "tiny-imagenet": Facts("Tiny-ImageNet", 100_000, 200),
    # Free stand-ins for the two ImageNet subsets, of other classes: never shown under the paper's names.
    "imagenette": Facts("Imagenette (stand-in)", 9_469, 10),
    "imagewoof": Facts("Imagewoof (stand-in)", 9_025, 10),
}

OWN = "own"  # stands in `Config.dataset` for anybody's pictures, of which nothing is known beforehand


class Rule(NamedTuple):
    """What a setting must satisfy, and how to say so. ``names`` lists all values where they can be listed."""

    holds: Callable[[Any], bool]
    allowed: str
    names: tuple[str, ...] = ()


def at_least(low: float) -> Rule:
    return Rule(lambda v: low <= v < math.inf, f"at least {low}")


def above(low: float) -> Rule:
    return Rule(lambda v: low < v < math.inf, f"above {low}")


def between(low: float, high: float) -> Rule:
    return Rule(lambda v: low <= v <= high, f"from {low} to {high}")


def ordered(high: float) -> Rule:
    return Rule(lambda v: 0 < v[0] <= v[1] <= high, f"above 0 and up to {high}, the smaller first")


def one_of(*names: str) -> Rule:
    return Rule(lambda v: v in names, "one of " + ", ".join(map(repr, names)), names)


ODD = Rule(lambda v: v >= 3 and v % 2 == 1, "odd and at least 3")
ANY = Rule(lambda v: True, "true or false")
TEXT = Rule(lambda v: True, "a text")


def option(default: Any, rule: Rule, doc: str, machine: bool = False) -> Any:
    """A field with its rule and its line of help; the command line is made of both.

    ``machine``: says how a run is carried out, not what is run, and belongs to no recipe.
    """
    return field(default=default, metadata={"rule": rule, "doc": doc, "machine": machine})


BASELINES = ("kmeans", "spectral", "agglomerative", "nmf")

# For what is slow on all images of a large data set: at most so many, drawn at random with the run's seed.
SAMPLE = 10_000

# What differs from the full method in each column of Tables 3, 4 and 5, in two checks of the paper's words, without
# any training, and in the classical baselines of Table 2.
VARIANTS: dict[str, dict[str, Any]] = {
    "cc": {},
    "instance-only": {"heads": "instance"},
    "cluster-only": {"heads": "cluster"},
    "views-one": {"views": "one"},
    "views-none": {"views": "none"},
    "resnet18": {"backbone": "resnet18"},
    "resnet50": {"backbone": "resnet50"},
    "shared-head": {"heads": "shared"},
    "no-entropy": {"entropy_weight": 0.0},
    "untrained": {"epochs": 0, "sample": SAMPLE},
    # As far as a CPU goes in a quarter of an hour: no result, a sign of life.
    "short": {"backbone": "small", "sample": 5_000, "batch_size": 256, "lr": 0.2, "epochs": 15},
    "kmeans-pixels": {"baseline": "kmeans"},
    "nmf-pixels": {"baseline": "nmf"},
    "spectral-pixels": {"baseline": "spectral", "sample": SAMPLE},
    "agglomerative-pixels": {"baseline": "agglomerative", "sample": SAMPLE},
}

STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}  # jitter with s = 1 [code]

# What the fast profile changes everywhere: SCAN's optimiser and crops around the paper's two heads and two losses.
FAST = {
    "backbone": "resnet18",
    "crop_scale": (0.2, 1.0),
    "normalize": True,
    "optimizer": "sgd",
    "lr": 0.4,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "warmup": 0.025,
    "batch_size": 512,
    "precision": "auto",
}
# Pictures of 224 pixels and more: fewer of them, so smaller batches give more steps.
FAST_LARGE = {**FAST, **STRONG, "blur": 0.5, "batch_size": 256, "lr": 0.2}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {
        # Ours, for 8×8 grey pictures of digits: no flip (a mirrored 2 is no digit), no colour, gentler crops, and a
        # small affine map. Chosen with the labels of this data set in view; docs/digits.md lists what was tried.
        "digits": {
            "image_size": 8,
            "crop_scale": (0.5, 1.0),
            "flip": 0.0,
            "rotation": 15.0,
            "translation": 0.12,
            "shear": 11.0,
            "jitter": 1.0,
            "contrast": 0.0,
            "saturation": 0.0,
            "hue": 0.0,
            "grayscale": 0.0,
            "backbone": "small",
            "stem": "cifar",
            "instance_dim": 64,
            "lr": 3e-3,
            "schedule": "cosine",
            "batch_size": 128,
            "epochs": 50,
        },
    },
    "fast": {
        "cifar10": {**FAST, "image_size": 32, "stem": "cifar", "epochs": 400},
        "cifar100": {**FAST, "image_size": 32, "stem": "cifar", "epochs": 400, "n_clusters": 20},
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
    # Ours, for anybody's pictures: the fast profile's. `own_recipe` adds what depends on how many and how large.
    "own": {OWN: {**FAST, "image_size": 32, "stem": "cifar", "batch_size": 32, "epochs": 100}},
}
PROFILES = tuple(name for name in RECIPES if name != OWN)  # that a reproduction may name
NAMED = one_of(*PROFILES)._replace(holds=lambda v: v in RECIPES)


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Lengths are in pixels, angles in degrees.

    Raises `ConfigError` (exit code 2) for a value of the wrong type or outside its rule, and where there are more
    clusters, or a larger batch, than images.
    """

    dataset: str = option("cifar10", one_of(*DATASETS, OWN), "name of the data set")
    profile: str = option("paper", NAMED, "book of recipes that the settings come from")
    variant: str = option("cc", one_of(*VARIANTS), "the full method, an ablation of it or a baseline")
    seed: int = option(42, between(0, 2**31 - 1), "of weights, order of images and augmentation [code: 42]")

    n_clusters: int = option(10, at_least(2), "K, the number of classes [§4.2]")
    image_size: int = option(224, at_least(4), "side of a view [§4.2]")

    views: str = option("both", one_of("both", "one", "none"), "T(x) and T(x); T(x) and x; x and x [Table 3]")
    crop_scale: tuple[float, float] = option((0.08, 1.0), ordered(1), "area of the crop, as a share [code]")
    crop_ratio: tuple[float, float] = option((3 / 4, 4 / 3), ordered(10), "width over height of the crop [code]")
    flip: float = option(0.5, between(0, 1), "probability of a horizontal flip [code]")
    rotation: float = option(0.0, between(0, 180), "largest rotation to either side [ours, for digits]")
    translation: float = option(0.0, between(0, 1), "largest shift, as a share of the side [ours, for digits]")
    shear: float = option(0.0, between(0, 80), "largest shear along each axis [ours, for digits]")
    jitter: float = option(0.8, between(0, 1), "probability of colour jitter [§4.2: as SimCLR]")
    brightness: float = option(0.4, between(0, 1), "factor drawn from 1 ± this [code: .8 s, s = .5 on CIFAR, Tiny]")
    contrast: float = option(0.4, between(0, 1), "factor drawn from 1 ± this [code: .8 s]")
    saturation: float = option(0.4, between(0, 1), "factor drawn from 1 ± this [code: .8 s]")
    hue: float = option(0.1, between(0, 0.5), "shift drawn from ± this, in turns of the colour circle [code: .2 s]")
    grayscale: float = option(0.2, between(0, 1), "probability of dropping colour [§4.2: as SimCLR]")
    blur: float = option(0.0, between(0, 1), "probability of a Gaussian blur [§4.2: off on four data sets]")
    blur_kernel: int = option(23, ODD, "taps of the blur, per axis [code]")
    blur_sigma: tuple[float, float] = option((0.1, 2.0), ordered(100), "range of the blur's deviation [code]")

    backbone: str = option("resnet34", one_of("resnet18", "resnet34", "resnet50", "small"), "[§4.2, Table 5]")
    pretrained: str = option("", TEXT, "backbone's start: 'imagenet' (torchvision's weights), or a file [paper: none]")
    stem: str = option("imagenet", one_of("imagenet", "cifar"), "7×7 stride 2 and max-pool, or 3×3 [code]")
    normalize: bool = option(False, ANY, "give the network pixels of mean 0 and deviation 1 per channel [code: no]")
    head_norm: bool = option(False, ANY, "batch-norm in the hidden layer of both heads [code: no]")
    instance_dim: int = option(128, at_least(2), "D, width of the instance head's output [§4.2]")
    heads: str = option("both", one_of("both", "instance", "cluster", "shared"), "one, both, or one for two [Table 4]")
    baseline: str = option("", one_of("", *BASELINES), "a classical method on pixels instead of training [Table 2]")
    sample: int = option(0, at_least(0), "at most so many images, drawn at random with the seed; 0: all [ours]")

    instance_temperature: float = option(0.5, above(0), "of the instance loss [§4.2]")
    cluster_temperature: float = option(1.0, above(0), "of the cluster loss [§4.2]")
    entropy_weight: float = option(1.0, at_least(0), "of the entropy term; 1 in the paper [eq. 6]")

    unlabeled: bool = option(False, ANY, "first a pass over the unlabeled images, instance loss only [§4.2: STL-10]")
    optimizer: str = option("adam", one_of("adam", "sgd"), "sgd with momentum 0.9 [§4.2: Adam]")
    lr: float = option(3e-4, above(0), "learning rate, at its highest [§4.2]")
    weight_decay: float = option(0.0, at_least(0), "of all weights [§4.2: none]")
    schedule: str = option("constant", one_of("constant", "cosine"), "of the learning rate [§4.2: constant]")
    warmup: float = option(0.0, between(0, 1), "share of the epochs in which the rate rises to lr [ours]")
    batch_size: int = option(256, at_least(2), "N, images per step [§4.2]")
    epochs: int = option(1000, at_least(0), "passes over the data set; 0 leaves it untrained [§4.2]")

    precision: str = option(
        "fp32", one_of("auto", "fp32", "bf16"), "of the network; on a GPU, fp32 convolves in TF32 [code: fp32]"
    )
    device: str = option("auto", one_of("auto", "cpu", "cuda"), "auto takes a GPU where there is one", machine=True)
    compile: str = option(
        "auto",
        one_of("auto", "off", "default", "reduce-overhead"),
        "torch.compile's mode; auto: on a GPU",
        machine=True,
    )
    devices: int = option(1, at_least(1), "processes per node, each with a device; batch_size is of all", machine=True)
    nodes: int = option(1, at_least(1), "machines, each with so many devices", machine=True)
    threads: int = option(1, at_least(1), "torch threads on the CPU; with more, last bits differ", machine=True)
    checkpoint_seconds: float = option(
        10.0, at_least(0), "between checkpoints; more where writing one takes over a fiftieth of it", machine=True
    )

    def __post_init__(self):
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _valid(f, getattr(self, f.name)))
        facts = DATASETS.get(self.dataset, Facts("the collection", 2**31, 0))
        check_fits(self, facts.images, facts.title)
        if self.batch_size % self.ranks:
            what = f"batch_size is {self.batch_size}, for {self.ranks} devices in all"
            fix = f"Write batch_size={max(self.ranks, self.batch_size // self.ranks * self.ranks)}"
            raise ConfigError(what, "setting batch_size", "It must be a multiple of their number", fix)
        if not self.epochs and self.variant != "untrained":
            fix = "Write epochs=1, or variant=untrained"
            raise ConfigError("epochs is 0", "setting epochs", "It must be at least 1", fix)
        if self.unlabeled and not facts.unlabeled:
            allowed = "Only " + ", ".join(n for n, f in DATASETS.items() if f.unlabeled) + " has some"
            raise ConfigError(f"{facts.title} has no unlabeled images", "setting unlabeled", allowed, "Leave it out")

    @property
    def cell(self) -> str:
        """Where the run lives below ``runs/`` and ``results/runs/``: profile/dataset/variant-seedK."""
        return f"{self.profile}/{self.dataset}/{self.variant}-seed{self.seed}"

    @property
    def ranks(self) -> int:
        """R, the processes that train the model together."""
        return self.devices * self.nodes

    def overrides(self) -> dict[str, Any]:
        """The settings that differ from the recipe this one names, those of the machine left out."""
        return self.differences(recipe(self.dataset, self.profile, self.variant, self.seed))

    def differences(self, other: "Config") -> dict[str, Any]:
        """This one's value of each setting in which the two differ, those of the machine left out."""
        names = [f.name for f in dataclasses.fields(self) if not f.metadata["machine"]]
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(other, name)}


def recipe(dataset: str, profile: str = "demo", variant: str = "cc", seed: int = 0, **overrides: Any) -> Config:
    """The settings of one cell of a table: data set, profile, variant, seed, and what the caller changes.

    Raises `ConfigError` for an unknown name, a data set that the profile has no recipe for, and a bad value.
    """
    if profile not in RECIPES:
        raise unknown("profile", profile, "setting profile", PROFILES)
    if dataset not in RECIPES[profile]:
        raise _no_recipe(dataset, profile)
    if variant not in VARIANTS:
        raise unknown("variant", variant, "setting variant", VARIANTS)
    for name in overrides:
        check_name(name)
    settings = {**RECIPES[profile][dataset], **VARIANTS[variant], **overrides}
    return Config(dataset=dataset, profile=profile, variant=variant, seed=seed, **settings)


def own_recipe(n_clusters: int, n_images: int, shape: tuple[int, int, int], **overrides: Any) -> Config:
    """The settings for a collection of one's own: N images of ``shape`` (C, H, W), and what the caller changes.

    Pictures of up to 64 pixels are seen as they are, through the 3×3 stem; larger ones at 128, through ImageNet's. A
    batch is an eighth of the images, from 32 to 256 of them, and the learning rate is proportional to it.

    Raises `ConfigError` as `recipe` does, and where no cluster head would be trained.
    """
    recipe(OWN, OWN, n_clusters=n_clusters, **overrides)  # a mistake is told before it is reckoned with
    side, batch = min(shape[1:]), overrides.get("batch_size") or max(2, min(n_images, max(32, min(256, n_images // 8))))
    small, pretrained = side <= 64, overrides.get("pretrained", "")
    settings: dict[str, Any] = {"batch_size": batch, "lr": FAST["lr"] * int(batch) / FAST["batch_size"]}
    settings |= {"image_size": max(4, side) if small and not pretrained else 128}
    settings |= {"stem": "cifar" if small and not pretrained else "imagenet"}
    settings |= {"backbone": "small" if side <= 32 and not pretrained else "resnet18"}
    if pretrained:
        settings |= {"lr": settings["lr"] / 10, "epochs": 30}  # so that the start is not lost in the first steps
    config = recipe(OWN, OWN, n_clusters=n_clusters, **{**settings, **overrides})
    if config.heads == "instance":
        allowed = "The clusters are the cluster head's, which is not trained then"
        raise ConfigError("heads is instance", "setting heads", allowed, "Use heads=both")
    if config.baseline:
        what = f"baseline is {config.baseline}"
        raise ConfigError(what, "setting baseline", "A model is trained here", "Leave it out")
    check_fits(config, n_images, "the collection")
    return config


def check_fits(config: Config, n_images: int, title: str) -> None:
    """Raise `ConfigError` where a data set has fewer images than clusters, or than a batch takes."""
    for name in ("n_clusters",) if config.baseline else ("n_clusters", "batch_size"):
        value = getattr(config, name)
        if value > n_images:
            what = f"{name} is {value}, but {title} has {n_images} images"
            raise ConfigError(what, f"setting {name}", f"It must be at most {n_images}", "Choose a smaller one")


def _no_recipe(dataset: str, profile: str) -> ConfigError:
    others = [p for p in PROFILES if dataset in RECIPES[p]]
    if not others:
        return unknown("data set", dataset, "setting dataset", DATASETS)
    what = f"no recipe for {dataset} in profile {profile}"
    known = f"Known there: {', '.join(map(repr, RECIPES[profile]))}"
    return ConfigError(what, "setting profile", known, f"Use profile={others[0]}")


def read_settings(path: str | Path) -> dict[str, Any]:
    """Settings from a YAML file of ``name: value`` lines. Raises `ConfigError`, with file, line and column."""
    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}", "--settings", "A text file of settings", "Correct the path") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "start_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        line = Path(path).read_text().splitlines()[mark.line].strip() if mark else ""
        what = f"no plain YAML: {getattr(error, 'problem', None) or error}: {line!r}"
        raise ConfigError(what, where, "Lines of name: value, without tags", "Correct that line") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no settings", str(path), "Lines of name: value", "See ccrepro recipe digits")
    for name in found:
        if name not in (names := [f.name for f in dataclasses.fields(Config)]):
            raise unknown("setting", name, str(path), names)
    return found


def check_name(name: str) -> None:
    """Raise `ConfigError` unless ``name`` is a setting that may be overridden."""
    fixed = ("dataset", "profile", "variant", "seed")
    names = [f.name for f in dataclasses.fields(Config) if f.name not in fixed]
    if name not in names:
        raise unknown("setting", name, "overrides", names)


def _valid(f: dataclasses.Field, value: Any) -> Any:
    """``value`` in the type of its field, from Python, YAML, JSON or the command line; or `ConfigError`."""
    rule: Rule = f.metadata["rule"]
    try:
        cast = _CASTS[f.type](value)
    except (TypeError, ValueError, OverflowError):
        kind = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}.get(f.type, "two numbers")
        what, allowed = f"{f.name} is {value!r}", f"It must be {kind}, {rule.allowed}"
        raise ConfigError(what, f"setting {f.name}", allowed, "Correct it") from None
    if rule.holds(cast):
        return cast
    if rule.names:
        raise unknown(f.name, cast, f"setting {f.name}", rule.names)
    raise ConfigError(f"{f.name} is {cast}", f"setting {f.name}", f"It must be {rule.allowed}", "Correct it")


def _integer(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or math.isnan(float(value)):
        raise ValueError
    return float(value)


def _flag(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError
    return str(value).lower() == "true"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _pair(value: Any) -> tuple[float, float]:
    low, high = value.split(",") if isinstance(value, str) else value
    return _number(low), _number(high)


_CASTS = {int: _integer, float: _number, bool: _flag, str: _text, tuple[float, float]: _pair}
