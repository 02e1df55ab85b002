"""Networks with dead channels, for the tests of elimination and shrinking."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.pruning.channels.elimination import EliminationReport, eliminate

Masks = dict[str, Tensor]


def settle(model: nn.Module) -> nn.Module:
    """Weights and statistics as if trained: nothing at 0 or 1."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval()


def masked(model: nn.Module, dead: Mapping[str, Any]) -> Masks:
    """Masks with weight[index] dead for each layer; the weights are zeroed."""
    masks = {}
    for name, index in dead.items():
        key = f"{name}.weight"
        weight = model.get_parameter(key).data
        masks[key] = torch.ones_like(weight, dtype=torch.bool)
        masks[key][index] = False
        weight.masked_fill_(~masks[key], 0)
    return masks


def thin_out(model: nn.Module) -> Masks:
    """A third of the channels of every convolution dead."""
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return masked(model, {n: slice(0, len(model.get_parameter(f"{n}.weight")) // 3) for n in convs})


@torch.no_grad()
def difference(before: nn.Module, after: nn.Module, *sizes: int) -> float:
    """Largest difference of outputs over the largest output, in float64, on images of these sizes."""
    worst = 0.0
    for size in sizes:
        x = torch.randn(4, 3, size, size, dtype=torch.float64)
        a, b = copy.deepcopy(before).double().eval()(x), copy.deepcopy(after).double().eval()(x)
        worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst


def plain_net(*, bias: bool = True, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=padding),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4, bias=bias),
    )


def eliminated(model: nn.Module, masks: Masks, size: int = 12) -> tuple[nn.Module, EliminationReport]:
    """The model before, and the report."""
    before = copy.deepcopy(model)
    return before, eliminate(model, masks, example=torch.zeros(1, 3, size, size))


def chain(*, padding: int = 0, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=padding, bias=bias),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )
