"""Backbone, instance head and cluster head (§3, Fig. 2).

Letters: N images, H feature width of the backbone, D instance dimension, K clusters.
"""

import functools
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from ccrepro.config import Config

# Residual block, blocks per stage, channels of the first stage. "small" is ours, for pictures of a few pixels: its
# first stage is the stem alone.
BACKBONES = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64),
    "small": (BasicBlock, (0, 1, 1), 32),
}


class _PerView:
    """Batch-norm that gives each of ``parts[0]`` equal parts of a training batch statistics of its own.

    Two views one after the other in a batch are so normalised as in two forward passes, the running statistics and
    their number of updates included. All layers of a network share the list ``parts``. Several ranks on CPUs share
    their statistics; torch's own SyncBatchNorm, which does the same, is for GPUs only.
    """

    def __init__(self, channels: int, parts: list[int]):
        super().__init__(channels)
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.parts[0] == 1:
            return self._normalise(x)
        return torch.cat([self._normalise(part) for part in x.chunk(self.parts[0])])

    def _normalise(self, x: Tensor) -> Tensor:
        ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        return self._over_ranks(x, ranks) if self.training and ranks > 1 else super().forward(x)

    def _over_ranks(self, x: Tensor, ranks: int) -> Tensor:
        """x: (n, C) or (n, C, S, S) on each of the ranks."""
        dims, n = [0, *range(2, x.dim())], ranks * x.numel() // x.shape[1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        wide = x.to(self.weight.dtype)
        mean = _sum_over_ranks(wide.mean(dims) / ranks)
        centred = wide - mean.view(shape)
        variance = _sum_over_ranks(centred.square().mean(dims) / ranks)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight / (variance + self.eps).sqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    backward = forward


_sum_over_ranks = _Sum.apply


class BatchNorm1d(_PerView, nn.BatchNorm1d):
    pass


class BatchNorm2d(_PerView, nn.BatchNorm2d):
    pass


class Standardize(nn.Module):
    """Pixels in [0, 1] → mean 0 and deviation 1 in each channel of the data set; kept with the weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Backbone(nn.Module):
    """ResNet without its classifier: float (N, C, S, S) → features (N, H).

    Modules are named as in torchvision, so that its weights and the authors' load. ``stem="cifar"`` replaces the 7×7
    stride-2 convolution and the max-pool by a 3×3 convolution, for pictures of 8 to 64 pixels.
    """

    def __init__(self, name: str, stem: str, channels: int = 3):
        super().__init__()
        self.parts = [1]
        self._norm = functools.partial(BatchNorm2d, parts=self.parts)
        block, depths, width = BACKBONES[name]
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = self._norm(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        self.n_stages, self.width = len(depths), width
        for stage, depth in enumerate(depths):
            blocks = [self._block(block, width * 2**stage, stride=1 if i or not stage else 2) for i in range(depth)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.n_features = self.width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _block(self, block: type, planes: int, stride: int) -> nn.Module:
        """The next residual block; its shortcut is a 1×1 convolution where the shape changes."""
        width_in, self.width = self.width, planes * block.expansion
        shortcut = None
        if stride != 1 or width_in != self.width:
            convolution = nn.Conv2d(width_in, self.width, 1, stride, bias=False)
            shortcut = nn.Sequential(convolution, self._norm(self.width))
        return block(width_in, planes, stride, shortcut, norm_layer=self._norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in range(self.n_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean((2, 3))


class ContrastiveClusteringModel(nn.Module):
    """One backbone, two heads: float (N, C, S, S) → z (N, D) of unit length, p (N, K) of rows that sum to 1.

    ``shared`` makes z the rows of p, scaled to unit length: both losses on one matrix, which the paper argues against.
    """

    def __init__(self, config: Config, channels: int = 3):
        super().__init__()
        self.backbone = Backbone(config.backbone, config.stem, channels)
        self.shared = config.heads == "shared"
        if config.normalize:
            self.standardize = Standardize(channels)
        self.instance_head = self._head(config.instance_dim, config.head_norm)
        self.cluster_head = self._head(config.n_clusters, config.head_norm)
        if self.shared:
            self.instance_head.requires_grad_(False)  # is never called; several ranks would wait for its gradients

    def _head(self, n_outputs: int, norm: bool) -> nn.Sequential:
        width, parts = self.backbone.n_features, self.backbone.parts
        layers = [nn.Linear(width, width), BatchNorm1d(width, parts) if norm else None, nn.ReLU()]
        return nn.Sequential(*(layer for layer in layers if layer), nn.Linear(width, n_outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(self, "standardize"):
            x = self.standardize(x)
        features = self.backbone(x)
        p = F.softmax(_full(self.cluster_head(features)), dim=1)
        z = F.normalize(p if self.shared else _full(self.instance_head(features)), dim=1)
        return z, p

    def pair(self, view_a: Tensor, view_b: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(z, p) of each view, (N, C, S, S) both, each with its own batch statistics.

        A GPU takes them in one pass. On a CPU one after the other is faster, by a fifteenth in fp32: more of a pass
        stays in its caches, and nothing is copied together after each batch-norm. So it is for several ranks, whose
        batch-norm on GPUs is torch's.
        """
        at_once = view_a.is_cuda and not distributed.is_initialized()
        return self._at_once(view_a, view_b) if at_once else (self(view_a), self(view_b))

    def _at_once(self, view_a: Tensor, view_b: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Both views in one pass, with the same outputs and running statistics, bit for bit, as in two."""
        self.backbone.parts[0] = 2
        try:
            z, p = self(torch.cat((view_a, view_b)))
        finally:
            self.backbone.parts[0] = 1
        n = len(view_a)
        return (z[:n], p[:n]), (z[n:], p[n:])


def _full(x: Tensor) -> Tensor:
    """In single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def build(config: Config, channels: int = 3) -> ContrastiveClusteringModel:
    """The model of a configuration; its initial weights depend on ``config.seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ContrastiveClusteringModel(config, channels)
