"""Networks people use, with a third of their channels cut out, and loaded again."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from torch import nn

from starfire_cli.models import build_model, count_macs
from starfire_cli.pruning.channels.recipe import apply_shrink
from starfire_cli.pruning.channels.shrink import ShrinkReport, shrink
from tests.helpers.dead_channels import difference, settle, thin_out


def check_network(model: nn.Module, again: nn.Module, size: int) -> ShrinkReport:
    masks = thin_out(settle(model))
    report = shrink(model, masks, example=torch.zeros(1, 3, size, size))
    assert report.declined is None
    assert difference(model, report.model, size) < 2e-6
    assert report.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (model, report.model))
    assert report.macs == tuple(sum(count_macs(m, size).values()) for m in (model, report.model))
    recipe = json.loads(json.dumps(report.recipe))
    apply_shrink(again, recipe)
    again.load_state_dict(report.model.state_dict())
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), report.model(x))
    return report


NETS = ["resnet20", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"]


@pytest.mark.parametrize("name", NETS)
def test_networks_people_use(name: str) -> None:
    torch.manual_seed(0)
    report = check_network(build_model(name, num_classes=4), build_model(name, num_classes=4), 32)
    assert report.parameters[1] < (0.95 if name == "resnet20" else 0.8) * report.parameters[0]


def test_concatenated_channels() -> None:
    torch.manual_seed(0)
    nets = [torchvision.models.DenseNet(6, (2, 2), 12, num_classes=4) for _ in range(2)]
    report = check_network(nets[0], nets[1], 32)
    assert report.parameters[1] < 0.8 * report.parameters[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg11_bn", "resnet50", "resnet50-v1", "googlenet", "inception_v3", "regnet_y_400mf", "densenet121",
             "efficientnet_b0", "mnasnet0_5", "alexnet", "timm:resnet10t", "timm:efficientnet_lite0"]
)  # fmt: skip
def test_larger_networks(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    report = check_network(build_model(name, num_classes=4), build_model(name, num_classes=4), 96)
    assert report.parameters[1] < 0.85 * report.parameters[0]
