"""Small networks whose channels methods remove."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from tests.helpers.dead_channels import settle


class Block(nn.Module):
    """conv - bn - relu - conv - bn beside an identity."""

    def __init__(self, channels: int, *, padding: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=2 - padding, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class TinyResNet(nn.Module):
    """A stem, two blocks, and a linear layer behind a pool of 2 x 2."""

    def __init__(self, num_classes: int = 10, channels: int = 8, *, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(Block(channels, padding=padding), Block(channels, padding=padding))
        self.last = nn.Conv2d(channels, 12, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(48, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn(self.conv(x))))
        return self.fc(self.pool(torch.relu(self.last(x))).flatten(1))


def tiny_resnet(num_classes: int = 10) -> nn.Module:
    """As built by name; weights and statistics as if trained."""
    torch.manual_seed(0)
    return settle(TinyResNet(num_classes))


def images(count: int = 24, side: int = 10) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(7))


def edited(net: nn.Module, batches: tuple[Tensor, ...] = (), side: int = 10) -> EditedNetwork:
    """`net` with all its convolutions open to removal."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    return EditedNetwork(net, {}, layers=layers, image=(3, side, side), batches=batches)
