"""Every setting of a run, its rule and its source in the paper: one frozen dataclass and its validator.

The defaults are the paper's for CIFAR-10; `ccrepro.recipes` states what differs elsewhere. Sources stand in brackets:
"§" is a section of the paper (Li et al., Contrastive Clustering, AAAI 2021), "code" the authors' published code where
the paper is silent.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ccrepro.errors import ConfigError, unknown


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


ANY = Rule(lambda v: True, "true or false")
TEXT = Rule(lambda v: True, "a text")


def option(default: Any, rule: Rule, doc: str, machine: bool = False) -> Any:
    """A field with its rule and its line of help; the command line is made of both.

    ``machine``: says how a run is carried out, not what is run, and belongs to no recipe.
    """
    return field(default=default, metadata={"rule": rule, "doc": doc, "machine": machine})


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Lengths are in pixels, angles in degrees.

    Raises `ConfigError` (exit code 2) for a value of the wrong type or outside its rule.
    """

    dataset: str = option("cifar10", TEXT, "name of the data set")
    preset: str = option("paper", TEXT, "which recipes the settings come from")
    variant: str = option("cc", TEXT, "the full method, an ablation of it or a baseline")
    seed: int = option(42, between(0, 2**31 - 1), "of weights, order of images and augmentation [code: 42]")

    n_clusters: int = option(10, at_least(2), "K, the number of classes [§4.2]")
    image_size: int = option(224, at_least(4), "side of a view [§4.2]")

    views: str = option("both", one_of("both", "one", "none"), "T(x) and T(x); T(x) and x; x and x [Table 3]")
    crop_scale: tuple[float, float] = option((0.08, 1.0), ordered(1), "area of the crop, as a share [code]")
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

    backbone: str = option(
        "resnet34", one_of("resnet18", "resnet34", "resnet50", "small", "fast-s", "fast-m"), "[§4.2, Table 5]"
    )
    stem: str = option("imagenet", one_of("imagenet", "cifar"), "of a ResNet: 7×7 stride 2 and max-pool, or 3×3 [code]")
    normalize: bool = option(False, ANY, "give the network pixels of mean 0 and deviation 1 per channel [code: no]")
    instance_dim: int = option(128, at_least(2), "D, width of the instance head's output [§4.2]")
    heads: str = option("both", one_of("both", "instance", "cluster", "shared"), "one, both, or one for two [Table 4]")
    baseline: str = option(
        "", one_of("", "kmeans", "spectral", "agglomerative", "nmf"), "a classical method on pixels [Table 2]"
    )
    sample: int = option(0, at_least(0), "at most so many images, drawn at random with the seed; 0: all [ours]")

    instance_temperature: float = option(0.5, above(0), "of the instance loss [§4.2]")
    cluster_temperature: float = option(1.0, above(0), "of the cluster loss [§4.2]")
    entropy_weight: float = option(1.0, at_least(0), "of the entropy term; 1 in the paper [eq. 6]")

    unlabeled: bool = option(False, ANY, "first a pass over the unlabeled images, instance loss only [§4.2: STL-10]")
    optimizer: str = option(
        "adam", one_of("adam", "sgd", "nesterov"), "sgd with momentum 0.9, nesterov with Nesterov's [§4.2: Adam]"
    )
    lr: float = option(3e-4, above(0), "learning rate, at its highest [§4.2]")
    weight_decay: float = option(0.0, at_least(0), "of all weights [§4.2: none]")
    schedule: str = option("constant", one_of("constant", "cosine"), "of the learning rate [§4.2: constant]")
    warmup: float = option(0.0, between(0, 1), "share of the epochs in which the rate rises to lr [ours]")
    batch_size: int = option(256, at_least(2), "N, images per step [§4.2]")
    epochs: int = option(1000, at_least(0), "passes over the data set; 0 leaves it untrained [§4.2]")

    precision: str = option("fp32", one_of("auto", "fp32", "bf16"), "of the network; fp32 convolves in TF32 [code]")
    device: str = option("auto", one_of("auto", "cpu", "cuda"), "auto takes a GPU where there is one", machine=True)
    compile: str = option("auto", one_of("auto", "off", "default", "reduce-overhead"), "torch.compile", machine=True)
    threads: int = option(1, at_least(1), "torch threads on the CPU; with more, last bits differ", machine=True)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _valid(f, getattr(self, f.name)))
        if not self.epochs and self.variant != "untrained":
            raise ConfigError("epochs is 0. Write epochs=1, or variant=untrained.")
        if self.backbone.startswith("fast") and self.image_size < 9:  # three times halved, nothing would be left
            raise ConfigError(f"image_size is {self.image_size}, but {self.backbone} needs at least 9 pixels.")

    @property
    def map_side(self) -> int:
        """Side of the first feature maps, in pixels."""
        return self.image_size // (4 if self.stem == "imagenet" else 1)

    def differences(self, other: "Config") -> dict[str, Any]:
        """This one's value of each setting in which the two differ, those of the machine left out."""
        names = [f.name for f in dataclasses.fields(self) if not f.metadata["machine"]]
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(other, name)}


def _valid(f: dataclasses.Field, value: Any) -> Any:
    """``value`` in the type of its field, from Python, YAML, JSON or the command line; or `ConfigError`."""
    rule: Rule = f.metadata["rule"]
    try:
        cast = _CASTS[f.type](value)
    except (TypeError, ValueError, OverflowError):
        kind = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}.get(f.type, "two numbers")
        raise ConfigError(f"{f.name} is {value!r}. It must be {kind}, {rule.allowed}.") from None
    if rule.holds(cast):
        return cast
    if rule.names:
        raise unknown(f.name, cast, rule.names)
    raise ConfigError(f"{f.name} is {cast}. It must be {rule.allowed}.")


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
