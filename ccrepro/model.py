"""Backbone, instance head and cluster head (§3, Fig. 2).

Letters: N images, H feature width of the backbone, D instance dimension, K clusters.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccrepro.backbones import BACKBONES
from ccrepro.config import Config
from ccrepro.errors import ConfigError


class Standardize(nn.Module):
    """Scales pixels so that each channel of the data set has mean 0 and standard deviation 1. Both numbers are buffers,
    so they are saved with the weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class ContrastiveClusteringModel(nn.Module):
    """One backbone, two heads: float (N, C, S, S) → z (N, D) of unit length, p (N, K) of rows that sum to 1.

    With ``heads="shared"``, z is p with rows of unit length: both losses on one matrix, which the paper argues against.
    make_backbone: makes the backbone where the settings name none of `BACKBONES`, which raises `ConfigError` otherwise.
    """

    def __init__(self, config: Config, channels: int = 3, make_backbone: Callable[[], nn.Module] | None = None):
        super().__init__()
        self.channels, self.shared = channels, config.heads == "shared"
        self.standardize = Standardize(channels) if config.normalize else nn.Identity()
        if not make_backbone and config.backbone not in BACKBONES:
            raise ConfigError(f"backbone is {config.backbone!r}, which is no network to train. Choose another.")
        self.backbone = make_backbone() if make_backbone else BACKBONES[config.backbone](config.stem, channels)
        self.instance_head = self._head(config.instance_dim)
        self.cluster_head = self._head(config.n_clusters)
        if self.shared:
            self.instance_head.requires_grad_(False)  # is never called; several ranks would wait for its gradients

    def _head(self, n_outputs: int) -> nn.Sequential:
        width = self.backbone.n_features
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.backbone(self.standardize(x)))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """z (N, D) and p (N, K) from the backbone's features (N, H)."""
        p = F.softmax(_full(self.cluster_head(features)), dim=1)
        z = F.normalize(p if self.shared else _full(self.instance_head(features)), dim=1)
        return z, p


def _full(x: Tensor) -> Tensor:
    """The same numbers, in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def build(
    config: Config, channels: int = 3, make_backbone: Callable[[], nn.Module] | None = None
) -> ContrastiveClusteringModel:
    """The model of these settings. Its initial weights depend on ``config.seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ContrastiveClusteringModel(config, channels, make_backbone)
