"""The backbones: ResNets by name, in one table.

Letters: N images, C channels, S side, H feature width.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

# Residual block, blocks per stage, channels of the first stage. "small" is ours, for images of a few pixels: its
# first stage is the stem alone.
BACKBONES = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64),
    "small": (BasicBlock, (0, 1, 1), 32),
}


class Backbone(nn.Module):
    """ResNet without its classifier: float (N, C, S, S) → features (N, H).

    Modules are named as in torchvision, so that its weights and the authors' load. ``stem="cifar"`` replaces the 7×7
    stride-2 convolution and the max-pool by a 3×3 convolution, for images of 8 to 64 pixels.
    """

    def __init__(self, name: str, stem: str, channels: int = 3):
        super().__init__()
        block, depths, width = BACKBONES[name]
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
