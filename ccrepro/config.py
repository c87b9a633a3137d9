"""Every setting of a run, its rule and its source in the paper: one pydantic model.

The defaults are the paper's for CIFAR-10; `ccrepro.recipes` states what differs elsewhere. Sources stand in brackets:
"§" is a section of the paper (Li et al., Contrastive Clustering, AAAI 2021), "code" the authors' published code where
the paper is silent.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError

from ccrepro.errors import ConfigError, unknown

RENAMED = {"profile": "preset"}  # settings of earlier versions, and what they are called now
MACHINE = ("device", "compile", "threads")  # settings that say how a run is carried out; they belong to no recipe

Share = Annotated[float, Field(ge=0, le=1)]  # of a whole, or a probability
PositiveShare = Annotated[float, Field(gt=0, le=1)]


def setting(default: Any, about: str, **rule: Any) -> Any:
    """A setting: its default, its line of help, and its rule in pydantic's words."""
    return Field(default, description=about, **rule)


class Config(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Every setting of a run. Lengths are in pixels, angles in degrees.

    Raises `ConfigError` (exit code 2) for an unknown name and for a value of the wrong type or outside its rule.
    """

    dataset: str = setting("cifar10", "name of the data set")
    preset: str = setting("paper", "demo, laptop, fast or paper: where the settings come from")
    variant: str = setting("cc", "cc, an ablation or a baseline; reproduce --help lists them")
    seed: int = setting(0, "of weights, order of images and augmentation", ge=0, lt=2**31)

    n_clusters: int = setting(10, "K, the number of classes [§4.2]", ge=2)
    image_size: int = setting(224, "side of a view [§4.2]", ge=4)

    views: Literal["both", "one", "none"] = setting("both", "T(x) and T(x); T(x) and x; x and x [Table 3]")
    crop_scale: tuple[PositiveShare, PositiveShare] = setting((0.08, 1.0), "area of the crop, as a share [code]")
    flip: Share = setting(0.5, "probability of a horizontal flip [code]")
    rotation: float = setting(0.0, "largest rotation to either side [ours, for digits]", ge=0, le=180)
    translation: Share = setting(0.0, "largest shift, as a share of the side [ours, for digits]")
    shear: float = setting(0.0, "largest shear along each axis [ours, for digits]", ge=0, le=80)
    jitter: Share = setting(0.8, "probability of colour jitter [§4.2: as SimCLR]")
    brightness: Share = setting(0.4, "factor drawn from 1 ± this [code: .8 s, s = .5 on CIFAR, Tiny]")
    contrast: Share = setting(0.4, "factor drawn from 1 ± this [code: .8 s]")
    saturation: Share = setting(0.4, "factor drawn from 1 ± this [code: .8 s]")
    hue: float = setting(0.1, "shift drawn from ± this, in turns of the colour circle [code: .2 s]", ge=0, le=0.5)
    grayscale: Share = setting(0.2, "probability of dropping colour [§4.2: as SimCLR]")
    blur: Share = setting(0.0, "probability of a Gaussian blur [§4.2: off on four data sets]")

    backbone: Literal["resnet18", "resnet34", "resnet50", "small", "fast-s", "fast-m", "pretrained"] = setting(
        "resnet34", "the network below the heads [§4.2, Table 5]; pretrained: in your own images alone"
    )
    stem: Literal["imagenet", "cifar"] = setting("imagenet", "of a ResNet: 7×7 stride 2 and max-pool, or 3×3 [code]")
    normalize: bool = setting(False, "give the network pixels of mean 0 and deviation 1 per channel [code: no]")
    instance_dim: int = setting(128, "D, width of the instance head's output [§4.2]", ge=2)
    heads: Literal["both", "instance", "cluster", "shared"] = setting("both", "one, both, or one for two [Table 4]")
    baseline: Literal["", "kmeans", "spectral", "agglomerative", "nmf"] = setting(
        "", "a classical method on pixels in place of training [Table 2]"
    )
    sample: int = setting(0, "at most so many images, drawn at random with the seed; 0: all [ours]", ge=0)

    instance_temperature: float = setting(0.5, "of the instance loss [§4.2]", gt=0)
    cluster_temperature: float = setting(1.0, "of the cluster loss [§4.2]", gt=0)
    entropy_weight: float = setting(1.0, "of the entropy term; 1 in the paper [eq. 6]", ge=0)

    unlabeled: bool = setting(False, "first a pass over the unlabeled images, instance loss only [§4.2: STL-10]")
    optimizer: Literal["adam", "sgd", "nesterov"] = setting(
        "adam", "sgd with momentum 0.9, nesterov with Nesterov's [§4.2: Adam]"
    )
    lr: float = setting(3e-4, "learning rate, at its highest [§4.2]", gt=0)
    weight_decay: float = setting(0.0, "of all weights [§4.2: none]", ge=0)
    schedule: Literal["constant", "cosine"] = setting("constant", "of the learning rate [§4.2: constant]")
    warmup: Share = setting(0.0, "share of the epochs in which the rate rises to lr [ours]")
    batch_size: int = setting(256, "N, images per step [§4.2]", ge=2)
    epochs: int = setting(1000, "passes over the data set; 0 leaves it untrained [§4.2]", ge=0)

    precision: Literal["auto", "fp32", "bf16"] = setting("fp32", "of the network; fp32 convolves in TF32 [code]")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "auto takes a CUDA GPU; mps (Apple) is untested")
    compile: Literal["auto", "off", "default", "reduce-overhead"] = setting("auto", "mode of torch.compile")
    threads: int = setting(1, "torch threads on the CPU; with more, last bits differ", ge=1)

    def __init__(self, **settings: Any):
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _told(error.errors()[0]) from None
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ConfigError(f"crop_scale is {self.crop_scale}. Write the smaller first.")
        if not self.epochs and self.variant != "untrained":
            raise ConfigError("epochs is 0. Write epochs=1, or variant=untrained.")
        if self.backbone.startswith("fast") and self.image_size < 9:  # three times halved, nothing would be left
            raise ConfigError(f"image_size is {self.image_size}, but {self.backbone} needs at least 9 pixels.")

    @classmethod
    def stored(cls, settings: dict[str, Any]) -> Self:
        """The settings that a file holds, perhaps of another version. Raises `ConfigError` where it holds others than
        this version has, and as the class does."""
        found = {RENAMED.get(name, name): value for name, value in settings.items()}
        more, less = (sorted(a.keys() - b.keys()) for a, b in ((found, cls.model_fields), (cls.model_fields, found)))
        if more or less:
            parts = {"Unknown": more, "Missing": less}
            told = "; ".join(f"{what} settings: {', '.join(names)}" for what, names in parts.items() if names)
            raise ConfigError(f"{told}. Make it anew with this version.")
        return cls(**found)

    @property
    def quantize(self) -> bool:
        """Whether each operation on a view ends in whole levels of 0 … 255, as PIL's do [code]: in ``paper`` alone."""
        return self.preset == "paper"

    @property
    def map_side(self) -> int:
        """Side of the first feature maps, in pixels."""
        return self.image_size // (4 if self.stem == "imagenet" else 1)

    def replace(self, **changes: Any) -> Self:
        """The same settings but for these. Raises as the class does."""
        return type(self)(**{**dict(self), **changes})

    def differences(self, other: "Config") -> dict[str, Any]:
        """This one's value of each setting in which the two differ, those of the machine left out."""
        return {name: value for name, value in self if name not in MACHINE and value != getattr(other, name)}


def _told(mistake: Any) -> ConfigError:
    """A mistake that pydantic found, in our words: with the nearest name, or with the rule."""
    name, value = mistake["loc"][0], mistake["input"]
    if mistake["type"] == "extra_forbidden":
        return unknown("setting", name, Config.model_fields)
    if mistake["type"] == "literal_error":
        return unknown(name, value, get_args(Config.model_fields[name].annotation))
    return ConfigError(f"{name} is {value!r}. {mistake['msg'].replace('Input', 'It')}.")
