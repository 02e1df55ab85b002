"""Multiply-accumulates: against torch's own counter, and against layers that really are smaller."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from starfire_cli.models import build_model, count_macs, effective_macs
from starfire_cli.models.macs import probe


@pytest.mark.parametrize(
    ("name", "size"), [("resnet20", 32), ("resnet18", 40), ("mobilenet_v2", 32), ("resnet50-v1", 64), ("alexnet", 64)]
)
def test_macs_are_half_of_torchs_flops(name: str, size: int) -> None:
    model = build_model(name, num_classes=10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    assert 2 * sum(count_macs(model, size).values()) == counter.get_total_flops()


def test_published_cost_of_resnet50() -> None:
    """He et al. (2016), table 1, say 3.8e9 for v1 (cut off, not rounded); torchvision says 4.09e9 for v1.5."""
    with torch.device("meta"):
        v1, v15 = build_model("resnet50-v1", num_classes=1000), build_model("resnet50", num_classes=1000)
    assert round(sum(count_macs(v1, 224).values()) / 1e9, 2) == 3.86
    assert round(sum(count_macs(v15, 224).values()) / 1e9, 2) == 4.09


class Twice(nn.Module):
    """Also refuses the meta device, so that it is counted on real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.conv(y) if float(y.sum()) < 1e9 else y


def test_a_layer_called_twice_counts_twice_and_hooks_go() -> None:
    model = Twice().train()
    assert count_macs(model, 5) == {"conv": 2 * 25 * 3 * 27}
    assert not model.conv._forward_hooks
    assert model.training


def test_effective_macs_are_those_of_the_smaller_layer() -> None:
    wide, narrow = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, k, 3, groups=2)) for k in (8, 6))
    mask = torch.ones(8, 4, 3, 3, dtype=torch.bool)
    mask[6:] = False
    left = effective_macs(count_macs(wide, 9), {"1.weight": mask})
    assert left == count_macs(narrow, 9)


def test_a_module_under_two_names_keeps_its_weights() -> None:
    """torch's functional_call gives a module that it swaps twice the swapped tensors back."""
    import torch._dynamo  # without which models are tried for real

    first, tied = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    block = nn.Sequential(first, nn.BatchNorm2d(3))
    tied.weight = first.weight
    model = nn.Sequential(block, nn.ReLU(), block, tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert tuple(probe(model, 8).shape) == (1, 3, 8, 8)
    assert torch._dynamo is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
