"""Removing channels for good: what goes, what stays and why."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfire_cli.models import build_model
from starfire_cli.pruning.channels.shrink import ShrinkReport, shrink
from tests.helpers.dead_channels import chain, difference, masked, settle


def sizes(report: ShrinkReport) -> dict[str, tuple[int, int]]:
    """Layer -> outputs and inputs left."""
    return {layer.name: (layer.outputs[1], layer.inputs[1]) for layer in report.layers}


def test_a_dead_channel_goes_from_every_parameter_that_carries_it() -> None:
    model = settle(chain())
    model[1].bias.data[:] = 2.0
    masks = masked(model, {"0": [1, 4]})
    report = shrink(model, masks, example=torch.zeros(1, 3, 12, 12))
    small = report.model
    assert sizes(report) == {"0": (4, 3), "3": (5, 4), "7": (4, 5)}
    assert small[1].num_features == len(small[1].running_var) == 4
    assert torch.equal(small[0].weight, model[0].weight[[0, 2, 3, 5]])
    assert torch.equal(small[3].weight, model[3].weight[:, [0, 2, 3, 5]])
    emitted = F.relu(model[1](model[0](torch.zeros(1, 3, 5, 5))))[0, :, 0, 0]
    expected = model[3].bias + (model[3].weight.sum((2, 3)) * emitted)[:, [1, 4]].sum(1)
    torch.testing.assert_close(small[3].bias, expected)
    assert report.recipe == {"0": {"out": [0, 2, 3, 5]}, "1": {"out": [0, 2, 3, 5]}, "3": {"in": [0, 2, 3, 5]}}
    assert report.masks["0.weight"].all()
    assert report.masks["0.weight"].shape == (4, 3, 3, 3)
    assert difference(model, small, 12, 17) < 1e-6


def test_a_channel_that_nobody_reads_goes_though_it_lives() -> None:
    model = settle(chain(padding=1))
    masks = masked(model, {"3": (slice(None), [0, 3])})
    report = shrink(model, masks, example=torch.zeros(1, 3, 12, 12))
    assert sizes(report)["0"] == (4, 3)
    assert difference(model, report.model, 12) < 1e-12


def test_what_only_a_removed_channel_reads_goes_too() -> None:
    model = settle(chain())
    masks = masked(model, {"7": (slice(None), [2]), "3": ([0, 1, 3, 4], 5)})
    report = shrink(model, masks, example=torch.zeros(1, 3, 12, 12))
    assert sizes(report) == {"0": (5, 3), "3": (4, 5), "7": (4, 4)}
    assert difference(model, report.model, 12) < 1e-12


def test_a_constant_stays_in_front_of_zero_padding_unless_it_is_zero() -> None:
    model = settle(chain(padding=1))
    model[1].bias.data[[1, 4]] = torch.tensor([-40.0, 40.0])
    masks = masked(model, {"0": [1, 4]})
    report = shrink(model, masks, example=torch.zeros(1, 3, 12, 12))
    assert sizes(report)["0"] == (5, 3)
    assert report.layers[0].stayed == {"3 reads a constant there and pads with zeros": 1}
    assert difference(model, report.model, 12, 15) < 1e-12
    model[3].padding_mode = "reflect"
    model[3] = copy.deepcopy(model[3])
    model[3] = nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect")
    report = shrink(model, masks, example=torch.zeros(1, 3, 12, 12))
    assert sizes(report)["0"] == (4, 3)
    assert difference(model, report.model, 12, 15) < 1e-6


@pytest.mark.parametrize("norm", [True, False])
def test_a_layer_without_a_bias_hands_constants_to_its_batchnorm_or_gets_one(norm: bool) -> None:
    model = settle(chain(bias=False))
    if norm:
        model[4] = nn.Sequential(settle(nn.BatchNorm2d(5)), nn.ReLU())
    model[1].bias.data[:] = 2.0
    masks = masked(model, {"0": [1]})
    report = shrink(model, masks, example=torch.zeros(1, 3, 12, 12))
    assert (report.model[3].bias is None) is norm
    assert report.recipe["3"].get("bias", False) is not norm
    assert difference(model, report.model, 12) < 1e-6


def test_a_residual_sum_needs_every_summand() -> None:
    model = settle(build_model("resnet18", num_classes=3))
    dead = {"layer2.0.conv2": [5, 9], "layer2.0.downsample.0": [5, 9], "layer2.1.conv2": [5]}
    model.layer3[0].conv1.padding_mode = "replicate"  # so that constants may go where they are not zero
    for block in model.layer2:
        block.conv1.padding_mode = "replicate"
    masks = masked(model, dead)
    report = shrink(model, masks, example=torch.zeros(1, 3, 32, 32))
    assert all(sizes(report)[name][0] == 127 for name in dead)
    kept = [c for c in range(128) if c != 5]
    assert all(report.recipe[name]["out"] == kept for name in (*dead, "layer2.0.bn2", "layer2.1.bn2"))
    assert report.recipe["layer3.0.downsample.0"]["in"] == kept
    stayed = {layer.name: layer.stayed for layer in report.layers}["layer2.0.conv2"]
    assert list(stayed.values()) == [1]
    assert "reads the image there" in next(iter(stayed))
    assert difference(model, report.model, 32) < 1e-6


def test_depthwise_channels_go_with_what_feeds_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    masks = masked(model, {"2": [2, 3, 6]})
    report = shrink(model, masks, example=torch.zeros(1, 3, 9, 9))
    assert sizes(report) == {"0": (3, 3), "2": (6, 3), "4": (2, 6)}
    assert report.model[2].groups == 3
    assert report.masks["2.weight"].shape == (6, 1, 3, 3)
    assert report.layers[1].stayed == {"4 reads the image there": 1}
    assert difference(model, report.model, 9) < 1e-6


def test_grouped_convolutions_and_network_outputs_are_pinned() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 5, 1))
    masks = masked(model, {"0": [0], "1": [1], "2": [2]})
    report = shrink(model, masks, example=torch.zeros(1, 3, 9, 9))
    assert report.recipe == {}
    assert [layer.stayed for layer in report.layers] == [
        {"is read or given by 1, a grouped convolution": 1},
        {"is read or given by 1, a grouped convolution": 1},
        {"is an output of the network": 1},
    ]


def test_a_layer_keeps_one_channel() -> None:
    model = settle(chain())
    masks = masked(model, {"0": slice(None)})
    report = shrink(model, masks, example=torch.zeros(1, 3, 12, 12))
    assert sizes(report) == {"0": (1, 3), "3": (1, 1), "7": (4, 1)}
    assert report.layers[0].stayed == {"is the one channel that its layer must keep": 1}
    assert difference(model, report.model, 12, 14) < 1e-6


class Fixed(nn.Module):
    """Says its width out loud: it cannot shrink, though nothing else is in the way."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.conv(x), 2)
        if self.text == "numbers":
            return self.fc(x.view(-1, 16))
        return self.fc(x.view(x.size(0), -1) if self.text == "view" else x.reshape((x.shape[0], -1)))


@pytest.mark.parametrize("text", ["numbers", "view", "reshape"])
def test_flattening(text: str) -> None:
    model = Fixed(text)
    masks = masked(model, {"conv": [1]})
    report = shrink(model, masks, example=torch.zeros(1, 3, 8, 8))
    assert sizes(report) == ({"conv": (4, 3), "fc": (2, 16)} if text == "numbers" else {"conv": (3, 3), "fc": (2, 12)})
    assert difference(model, report.model, 8) < 1e-6
