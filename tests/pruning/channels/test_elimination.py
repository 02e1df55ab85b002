"""Linear weights behind dead channels: small networks by hand, where a naive reading would be wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.helpers.dead_channels import difference, eliminated, masked, plain_net, settle


def test_a_plain_network_by_hand() -> None:
    model = settle(plain_net())
    masks = masked(model, {"3": [1, 4]})
    masks["8.weight"] = torch.ones(4, 5, dtype=torch.bool)
    before, report = eliminated(model, masks)
    (layer,) = report.layers
    assert (layer.layer, layer.columns, layer.weights, layer.cut_off) == ("8", (1, 4), 8, 0)
    assert layer.kept == {"depends on the image": 3}
    assert [(p.name, p.channels, p.dead) for p in layer.producers] == [("3", 5, 2)]
    conv, norm, linear = before[3], before[4], before[8]
    expected = linear.bias.detach().clone()
    folded = 0
    for c in (1, 4):
        emitted = norm.weight[c] * (conv.bias[c] - norm.running_mean[c]) / (norm.running_var[c] + norm.eps).sqrt()
        emitted = torch.relu(emitted + norm.bias[c]).detach()
        folded += int(emitted > 0)
        expected += linear.weight[:, c].detach() * emitted
    torch.testing.assert_close(model[8].bias.detach(), expected)
    assert layer.folded == folded
    assert not model[8].weight[:, [1, 4]].any()
    assert not report.masks["8.weight"][:, [1, 4]].any()
    assert report.masks["8.weight"][:, [0, 2, 3]].all()
    assert torch.equal(report.masks["3.weight"], masks["3.weight"])
    assert masks["8.weight"].all()
    assert difference(before, model, 12, 20) < 1e-6


def test_zeroing_as_the_paper_says_would_change_the_outputs() -> None:
    """The test that BatchNorm's constants matter: the same columns without their constants."""
    model = settle(plain_net())
    masks = masked(model, {"3": [0, 1, 2, 3]})
    naive = copy.deepcopy(model)
    naive[8].weight.data[:, [0, 1, 2, 3]] = 0
    before, report = eliminated(model, masks)
    assert report.layers[0].columns == (0, 1, 2, 3)
    assert difference(before, naive, 12) > 1e-2
    assert difference(before, model, 12) < 1e-6


def test_without_a_bias_only_zeros_go() -> None:
    model = settle(plain_net(bias=False))
    masks = masked(model, {"3": [0, 1]})
    model[4].bias.data[:2] = torch.tensor([-50.0, 50.0])  # relu makes 0 of the first, and not of the second
    before, report = eliminated(model, masks)
    assert report.layers[0].columns == (0,)
    assert report.layers[0].kept["carries a constant, and the layer has no bias to take it"] == 1
    assert model[8].bias is None
    assert difference(before, model, 12) < 1e-12


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_map_meets_padding(padding: int) -> None:
    """A constant that a padded convolution reads is not one at the border, and the pool's mean follows the size."""
    model = settle(plain_net(padding=padding))
    model[1].bias.data[:] = 5.0
    masks = masked(model, {"0": slice(None)})
    before, report = eliminated(model, masks)
    assert len(report.layers[0].columns) == (0 if padding else 5)
    assert bool(report.layers[0].notes) == bool(padding)
    assert difference(before, model, 12, 20) < 1e-6


def test_one_pixel_maps_do_not_pass_for_constant_ones() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), *plain_net(padding=1)[3:]))
    model[2] = nn.Conv2d(4, 5, 3, padding=1)
    masks = masked(model, {"0": slice(None)})
    model[0].bias.data[:] = 1.0
    before, report = eliminated(model, masks, size=1)
    assert report.layers[0].columns == ()
    assert difference(before, model, 1, 9) == 0


def test_pools_that_count_padding() -> None:
    for pool, goes in (
        (nn.AvgPool2d(3, 1, padding=1), False),
        (nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), True),
        (nn.AvgPool2d(2, 2, divisor_override=3), False),
        (nn.MaxPool2d(3, 2, padding=1), True),
    ):
        model = settle(plain_net())
        model[6] = nn.Sequential(pool, nn.AdaptiveAvgPool2d(1))
        masks = masked(model, {"3": [2]})
        model[4].bias.data[2] = 3.0
        before, report = eliminated(model, masks)
        assert (report.layers[0].columns == (2,)) is goes
        assert difference(before, model, 12, 15) < 1e-6


def test_flattened_maps_take_a_column_a_pixel() -> None:
    model = settle(plain_net())
    model[6] = nn.AdaptiveMaxPool2d((2, 3))
    model[8] = nn.Linear(30, 4)
    masks = masked(model, {"3": [1]})
    before, report = eliminated(model, masks)
    assert report.layers[0].columns == tuple(range(6, 12))
    assert difference(before, model, 12) < 1e-6


def test_dead_neurons_carry_on_to_the_next_linear_layer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))
    masks = masked(model, {"1": [0, 5]})
    before, report = eliminated(model, masks, size=2)
    assert [r.columns for r in report.layers] == [(), (0, 5)]
    assert difference(before, model, 2) < 1e-6
