"""Activation functions of exports against torch in float64, also far from zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.exported import run_steps

pytest.importorskip("llvmlite")

ACTIVATIONS = (
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Hardsigmoid(), nn.Hardswish(), nn.SiLU(), nn.Tanh(),
    nn.GELU(),
)  # fmt: skip


class Pointwise(nn.Module):
    """The pixels through an activation, times one."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        self.activation = activation
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.activation(self.conv(x)), 1)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_values_from_far_below_to_far_above_zero(activation: nn.Module) -> None:
    values = torch.cat([torch.linspace(-12, 12, 3 * 250), torch.tensor([-1e4, -200.0, -89.0, 0.0, 89.0, 1e4] * 3)])
    images = values.reshape(1, 3, 1, -1)
    found = run_steps(Pointwise(activation), images).double()
    expected = activation(images.double()).flatten(1)
    assert (found - expected).abs().le(4e-7 * expected.abs().clamp_min(1.0)).all()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Hardswish()], ids=lambda a: type(a).__name__)
def test_nan_stays_nan(activation: nn.Module) -> None:
    images = torch.zeros(1, 3, 2, 2)
    images[0, 1, 1, 0] = float("nan")
    assert torch.equal(run_steps(Pointwise(activation), images).isnan(), images.flatten(1).isnan())
