"""The backbones, by name, in one table: ResNets, and a fast network for small images.

Letters: N images, C channels, S side, H feature width.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck


class ResNet(nn.Module):
    """ResNet without its classifier: float (N, C, S, S) → features (N, H).

    block: torchvision's residual block; depths: how many in each stage; width: channels of the first stage. Modules are
    named as in torchvision, so that its weights and the authors' load. ``stem="cifar"`` replaces the 7×7 stride-2
    convolution and the max-pool by a 3×3 convolution, for images of 8 to 64 pixels.
    """

    def __init__(self, block: type, depths: tuple[int, ...], width: int, stem: str, channels: int = 3):
        super().__init__()
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
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
            shortcut = nn.Sequential(convolution, nn.BatchNorm2d(self.width))
        return block(width_in, planes, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in range(self.n_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean((2, 3))


class FastNetwork(nn.Module):
    """A small plain network of the kind that speed runs on CIFAR-10 use: float (N, C, S, S), S ≥ 9 → features (N, H).

    First a 2×2 convolution, which `whiten` sets and which is not trained; then a block for each of ``widths``; then the
    largest value of each map. The layout follows KellerJordan/cifar10-airbench, and so do the first weights: the first
    channels of each convolution are the identity. The network has a stem of its own and ignores ``stem``.
    """

    def __init__(self, widths: tuple[int, ...], stem: str, channels: int = 3):
        super().__init__()
        self.whitening = nn.Conv2d(channels, 8 * channels, 2)
        self.whitening.weight.requires_grad_(False)
        channels_in = (self.whitening.out_channels, *widths)
        self.blocks = nn.Sequential(*map(self._block, channels_in, widths))
        self.n_features = widths[-1]
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight.data[: module.in_channels])

    @staticmethod
    def _block(channels: int, width: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.GELU()),
        )

    @torch.no_grad()
    def whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Make the first convolution whiten the 2×2 patches of these images, float (N, C, S, S), without labels.

        Its filters are the eigenvectors of the patches' covariance, each over the root of its eigenvalue, and the same
        with the other sign; ``eps`` is added to the eigenvalues, so that noise is not blown up.
        """
        patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()  # (P, 4 C)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        filters = (vectors / (values + eps).sqrt()).T.unflatten(1, (-1, 2, 2))  # (4 C, C, 2, 2)
        self.whitening.weight.copy_(torch.cat((filters, -filters)))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.blocks(F.gelu(self.whitening(x)))
        # The gradient of amax goes to what equals the maximum. Compiled in bf16, nothing may, and it divides 0 by 0.
        return F.adaptive_max_pool2d(maps, 1).flatten(1)


# Each is called with ``stem`` and ``channels``. "small" is ours, for images of a few pixels: its first stage is the
# stem alone.
BACKBONES = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2), 64),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3), 64),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3), 64),
    "small": partial(ResNet, BasicBlock, (0, 1, 1), 32),
    "fast-s": partial(FastNetwork, (32, 128, 128)),
    "fast-m": partial(FastNetwork, (64, 256, 256)),
}
