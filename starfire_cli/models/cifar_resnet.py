"""Residual networks for CIFAR: 6n + 2 layers, stages of 16, 32 and 64 channels (He et al. 2016, section 4.2).

Shortcuts are option A, without parameters. State-dict keys are those of the common PyTorch port (conv1, bn1,
layer1.0.conv1, ..., linear), so its published weights load. The pool is global: any image of 8 pixels or more fits.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}


class CifarResNet(nn.Module):
    """Images (N, 3, H, W), H and W of 8 or more, to logits (N, num_classes).

    Args:
        blocks: blocks a stage, n in 6n + 2.
        num_classes: the logits.
    """

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16)
        self.layer2 = _stage(blocks, 16, 32)
        self.layer3 = _stage(blocks, 32, 64)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; the first strides where the channels double."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        grows = channels != channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=2 if grows else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = PadShortcut(channels - channels_in) if grows else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class PadShortcut(nn.Module):
    """Option A: every other pixel, and zeros for the new channels, half of them before and half after the old."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.each_side = new_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.each_side, self.each_side))


def _stage(blocks: int, channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(channels_in, channels), *(BasicBlock(channels, channels) for _ in range(blocks - 1))
    )


def names() -> list[str]:
    """The models of this file."""
    return list(DEPTHS)


def build(name: str, *, num_classes: int, image_size: int | None) -> nn.Module:
    """The model called `name`; any image size fits, so `image_size` is not needed."""
    return CifarResNet(DEPTHS[name], num_classes)
