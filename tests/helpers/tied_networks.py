"""Small networks with weights tied in every way that a module allows, for `--model`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tied(nn.Module):
    """Two 3x3 convolutions are one tensor, and two linear layers; the later names sort first."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.z = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Linear(8, 8)
        self.down = nn.Linear(8, 8)
        self.fc = nn.Linear(8, num_classes)
        self.tie()

    def tie(self) -> None:
        self.b.weight = self.z.weight
        self.down.weight = self.up.weight

    def forward(self, pixels: Tensor) -> Tensor:
        maps = torch.relu(self.b(torch.relu(self.z(torch.relu(self.stem(pixels))))))
        found: Tensor = self.fc(torch.relu(self.down(torch.relu(self.up(maps.mean((2, 3)))))))
        return found


class Apart(Tied):
    """Two `Parameter` objects over one storage."""

    def tie(self) -> None:
        self.b.weight = nn.Parameter(self.z.weight.data)
        self.down.weight = nn.Parameter(self.up.weight.data)


class Twice(Tied):
    """One module under two names."""

    def tie(self) -> None:
        self.b = self.z
        self.down = self.up


class Embedded(Tied):
    """A module that is no layer has the tensor first."""

    def tie(self) -> None:
        super().tie()
        first = nn.Embedding(len(self.fc.weight), 8)
        self.fc.weight = first.weight
        self._modules = {"table": first, **self._modules}


class Transposed(Tied):
    """One linear layer reads the other's memory in another order."""

    def tie(self) -> None:
        self.b.weight = self.z.weight
        self.down.weight = nn.Parameter(self.up.weight.data.t())


class Untied(Tied):
    """The same layers, each with a weight of its own."""

    def tie(self) -> None:
        pass
