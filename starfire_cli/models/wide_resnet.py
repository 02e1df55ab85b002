"""Wide residual networks for CIFAR: depth d, width k, pre-activation (Zagoruyko and Komodakis 2016, arXiv 1605.07146).

Three stages of (d - 4) / 6 blocks with 16k, 32k and 64k channels; shortcuts are 1 x 1 convolutions where the channels
change. No dropout. The pool is global: any image of 8 pixels or more fits.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

SHAPES = {
    f"wrn{d}-{k}": (d, k) for d, k in ((16, 1), (16, 2), (16, 4), (16, 8), (22, 2), (28, 2), (28, 10), (40, 2), (40, 4))
}


class WideResNet(nn.Module):
    """Images (N, 3, H, W), H and W of 8 or more, to logits (N, num_classes).

    Args:
        depth: convolutions and the linear layer together, 6n + 4.
        width: channels as multiples of 16, 32 and 64.
        num_classes: the logits.
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(blocks, sizes[0], sizes[1], 1)
        self.layer2 = _stage(blocks, sizes[1], sizes[2], 2)
        self.layer3 = _stage(blocks, sizes[2], sizes[3], 2)
        self.bn = nn.BatchNorm2d(sizes[3])
        self.linear = nn.Linear(sizes[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU and a 3 x 3 convolution, twice, beside a shortcut, which takes what the first ReLU gives."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.changes = channels_in != channels
        self.shortcut = (
            nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False) if self.changes else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        sum_: Tensor = y + self.shortcut(active if self.changes else x)
        return sum_


def _stage(blocks: int, channels_in: int, channels: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1)))


def names() -> list[str]:
    """The models of this file."""
    return list(SHAPES)


def build(name: str, *, num_classes: int, image_size: int | None) -> nn.Module:
    """The model called `name`; any image size fits, so `image_size` is not needed."""
    return WideResNet(*SHAPES[name], num_classes)
