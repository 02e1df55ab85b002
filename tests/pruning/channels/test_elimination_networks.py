"""Linear weights behind dead channels in networks people use."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from starfire_cli.models import build_model
from tests.helpers.dead_channels import difference, eliminated, masked, settle, thin_out

# Whose channels c, c + 8 or c + 16 end up in channel c + 24 of the last sum: resnet20's shortcuts pad on both sides.
RESIDUAL = {
    "resnet20": (
        *((f"layer{s}.{b}.conv2", 16 if s == 3 else 8 if s == 2 else 0) for s in (1, 2, 3) for b in (0, 1, 2)),
        ("conv1", 0),
    ),
    "resnet18": (("layer4.0.conv2", 0), ("layer4.0.downsample.0", 0), ("layer4.1.conv2", 0)),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_every_summand_of_a_residual_sum_must_be_dead(name: str) -> None:
    torch.manual_seed(0)
    model = settle(build_model(name, num_classes=5))
    last = "layer3.2.conv2" if name == "resnet20" else "layer4.1.conv2"
    shift = 24 if name == "resnet20" else 0
    one = copy.deepcopy(model)
    before, report = eliminated(one, masked(one, {last: [20, 21]}), size=32)
    assert report.layers[0].columns == ()
    assert report.layers[0].kept["a dead channel, but added to a live one"] == 2
    masks = {}
    for row, offset in RESIDUAL[name]:
        masks |= masked(model, {row: [c + offset + (8 if shift and offset == 16 else 0) for c in (5, 6)]})
    before, report = eliminated(model, masks, size=32)
    assert report.layers[0].columns == (5 + shift, 6 + shift)
    assert len(report.layers[0].producers) >= 3
    assert difference(before, model, 32, 40) < 1e-6


@pytest.mark.parametrize(
    ("name", "last"),
    [("mobilenet_v2", "features.18.0"), ("mobilenet_v3_small", "features.12.0"), ("shufflenet_v2_x0_5", "conv5.0")],
)
def test_networks_people_use(name: str, last: str) -> None:
    """One convolution feeds their heads: its dead channels are the columns that go."""
    torch.manual_seed(0)
    model = settle(build_model(name, num_classes=4))
    before, report = eliminated(model, thin_out(model), size=32)
    head = next(r for r in report.layers if r.producers[0].name == last)
    assert head.columns == tuple(range(head.producers[0].channels // 3))
    assert difference(before, model, 32) < 1e-6


def test_concatenated_channels() -> None:
    torch.manual_seed(0)
    model = settle(torchvision.models.DenseNet(6, (2, 2), 12, num_classes=4))
    before, report = eliminated(model, thin_out(model), size=32)
    assert report.layers[0].columns
    assert difference(before, model, 32) < 1e-6
    squeeze = settle(build_model("squeezenet1_1", num_classes=4))
    assert eliminated(squeeze, thin_out(squeeze), size=32)[1].layers == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg11_bn", "vgg11", "resnet50", "googlenet", "inception_v3", "regnet_y_400mf", "densenet121",
             "efficientnet_b0", "mnasnet0_5", "swin_t", "convnext_tiny", "vit_b_32", "alexnet"]
)  # fmt: skip
def test_larger_networks(name: str) -> None:
    torch.manual_seed(0)
    size = 224 if name == "vit_b_32" else 96
    model = settle(build_model(name, num_classes=4))
    if name == "vit_b_32":
        nn.init.normal_(model.heads.head.weight)
    before, report = eliminated(model, thin_out(model), size=size)
    assert report.declined is None
    assert report.weights > 0 or name in ("swin_t", "convnext_tiny", "vit_b_32")
    assert difference(before, model, size) < 2e-6
