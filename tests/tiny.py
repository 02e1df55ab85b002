"""Small networks for tests, named on the command line as tests.tiny:net."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """conv - bn - relu - conv - bn - relu - 1x1 conv - dropout - pool - linear: every kind of layer, and randomness."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.point = nn.Conv2d(12, 12, 1)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = self.drop(torch.relu(self.point(x)))
        return self.fc(x.mean((2, 3)))


def net(num_classes: int) -> nn.Module:
    return Net(num_classes)


class Plain(nn.Module):
    """No statistics over a batch and nothing random: what it learns does not depend on who has which image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.point = nn.Conv2d(24, 24, 1)
        self.fc = nn.Linear(24 * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(torch.relu(self.point(x)).flatten(1))


def plain(num_classes: int) -> nn.Module:
    return Plain(num_classes)


class Perceptron(nn.Module):
    """Three linear layers in a row, behind a convolution that no BatchNorm follows."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.fc1 = nn.Linear(64, 20)
        self.fc2 = nn.Linear(20, 16)
        self.fc3 = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def perceptron(num_classes: int) -> nn.Module:
    return Perceptron(num_classes)


class Explodes(Net):
    """Its logits become inf after 20 calls in training."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x) * (torch.inf if self.calls > 20 else 1)


def explodes(num_classes: int) -> nn.Module:
    return Explodes(num_classes)


class ExplodesOnTheSecond(Explodes):
    """The same network on all ranks, as they have to be."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if os.environ.get("RANK") == "1" else Net.forward(self, x)


def explodes_on_the_second(num_classes: int) -> nn.Module:
    return ExplodesOnTheSecond(num_classes)


class Narrow(nn.Module):
    """A BatchNorm behind a global pooling: one image gives it a single value of each channel."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(self.last(x.mean((2, 3))))


def narrow(num_classes: int) -> nn.Module:
    return Narrow(num_classes)


class Residual(nn.Module):
    """Two residual blocks, the second with a 1x1 convolution beside it: channels of the stream go if nobody needs them.

    No randomness; BatchNorm behind every convolution.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 10, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(10)
        self.block1 = self._branch(10, 12, 10, 1)
        self.block2, self.beside = self._branch(10, 16, 14, 2), nn.Conv2d(10, 14, 1, stride=2, bias=False)
        self.fc = nn.Linear(14, num_classes)

    @staticmethod
    def _branch(inputs: int, inner: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, inner, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.block1(x) + x)
        x = torch.relu(self.block2(x) + self.beside(x))
        return self.fc(x.mean((2, 3)))


def residual(num_classes: int) -> nn.Module:
    return Residual(num_classes)


class Branching(Plain):
    """Decides by values, so that torch.fx cannot trace it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def branching(num_classes: int) -> nn.Module:
    return Branching(num_classes)
