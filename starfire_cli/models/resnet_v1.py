"""ResNet50, 101 and 152 as first published ("v1"): bottlenecks stride in their first 1 x 1 (He et al. 2016, table 1).

The paper trains both: v1, and v1.5, which strides in the 3 x 3 and is what torchvision calls resnet50. Weights have
the same shapes and keys in both, so a file does not tell which it is; the spec in a checkpoint does.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

LAYERS = {"resnet50-v1": [3, 4, 6, 3], "resnet101-v1": [3, 4, 23, 3], "resnet152-v1": [3, 8, 36, 3]}


class BottleneckV1(Bottleneck):  # type: ignore[misc]  # torchvision has no types
    """torchvision's bottleneck with the stride moved from `conv2` to `conv1`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


def names() -> list[str]:
    """The models of this file."""
    return list(LAYERS)


def build(name: str, *, num_classes: int, image_size: int | None) -> nn.Module:
    """The model called `name`; any image size of 32 or more fits, so `image_size` is not needed."""
    model: nn.Module = ResNet(BottleneckV1, LAYERS[name], num_classes=num_classes)
    return model
