"""Removing channels for good: what goes, what stays and why, and that a shrunk checkpoint can be loaded again."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.models import build_model, count_macs
from starfire_cli.pruning.recipe import apply_shrink, compose_recipes, shrink_masks
from starfire_cli.pruning.shrink import ShrinkReport, shrink

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


def masked(model: nn.Module, dead: dict[str, Any]) -> Masks:
    """Masks with weight[index] dead for each layer; the weights are zeroed."""
    masks = {}
    for name, index in dead.items():
        weight = model.get_parameter(f"{name}.weight").data
        masks[f"{name}.weight"] = torch.ones_like(weight, dtype=torch.bool)
        masks[f"{name}.weight"][index] = False
        weight.masked_fill_(~masks[f"{name}.weight"], 0)
    return masks


def sizes(report: ShrinkReport) -> dict[str, tuple[int, int]]:
    """Layer -> outputs and inputs left."""
    return {layer.name: (layer.outputs[1], layer.inputs[1]) for layer in report.layers}


@torch.no_grad()
def difference(before: nn.Module, after: nn.Module, *image_sizes: int) -> float:
    worst = 0.0
    for size in image_sizes:
        x = torch.randn(4, 3, size, size, dtype=torch.float64)
        a, b = copy.deepcopy(before).double().eval()(x), copy.deepcopy(after).double().eval()(x)
        worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst


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


def thin_out(model: nn.Module) -> Masks:
    """A third of the channels of every convolution dead."""
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return masked(model, {n: slice(0, len(model.get_parameter(f"{n}.weight")) // 3) for n in convs})


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


def test_shrinking_twice_is_one_recipe() -> None:
    torch.manual_seed(0)
    full, again = (settle(build_model("mobilenet_v2", num_classes=4)) for _ in range(2))
    first = shrink(full, thin_out(full), example=torch.zeros(1, 3, 32, 32))
    more = masked(first.model, {n: [0] for n, m in first.model.named_modules() if isinstance(m, nn.Conv2d)})
    second = shrink(first.model, more, example=torch.zeros(1, 3, 32, 32))
    assert second.parameters[1] < second.parameters[0] == first.parameters[1]
    recipe = compose_recipes(first.recipe, second.recipe)
    apply_shrink(again, recipe)
    again.load_state_dict(second.model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), second.model(x))
    masks = {"features.0.0.weight": torch.rand(32, 3, 3, 3) > 0.5}
    in_one, in_two = shrink_masks(masks, recipe), shrink_masks(shrink_masks(masks, first.recipe), second.recipe)
    assert torch.equal(in_one["features.0.0.weight"], in_two["features.0.0.weight"])


@pytest.mark.parametrize(
    "recipe",
    [
        {"9": {"out": [0]}},
        {"2": {"out": [0]}},
        {"0": {"out": []}},
        {"0": {"out": [0, 6]}},
        {"0": {"out": [1, 0]}},
        {"0": {"out": [0, 0]}},
        {"0": {"out": [True]}},
        {"0": {"out": "all"}},
        {"0": {"sideways": [0]}},
        {"0": {"bias": True}},
        {"1": {"in": [0]}},
        {"7": {"in": [-1]}},
    ],
)
def test_recipes_that_do_not_fit(recipe: dict[str, dict[str, Any]]) -> None:
    model = chain()
    with pytest.raises(StarfireError, match="the recipe"):
        apply_shrink(model, {"3": {"out": [0]}, **recipe})
    assert model[3].weight.shape == (5, 6, 3, 3)


def test_the_model_given_is_not_touched_and_modes_carry_over() -> None:
    model = settle(chain()).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    masks = masked(model, {"0": [1]})
    state = copy.deepcopy(model.state_dict())
    report = shrink(model, masks, example=torch.zeros(1, 3, 12, 12))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in report.model] == [m.training for m in model] == [i != 1 for i in range(8)]
    assert [p.requires_grad for p in report.model.parameters()] == [p.requires_grad for p in model.parameters()]


def test_declined_and_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else x

    model = Branching()
    report = shrink(model, masked(model, {"conv": [1]}))
    assert report.declined is not None
    assert report.declined.startswith("torch.fx cannot trace the model")
    assert report.parameters == (16, 16)
    with pytest.raises(Mismatch, match="12 pruned weights are not zero"):
        shrink(Branching(), {"conv.weight": torch.zeros(4, 3, 1, 1, dtype=torch.bool)})


def test_an_alias_that_the_graph_does_not_show_pins_its_channels() -> None:
    """The graph cannot see that the view writes to the tensor behind it; nothing is removed there."""

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y.select(1, 0).add_(x[:, 0])
            return self.fc(F.relu(y))

    model = Aliased()
    masks = masked(model, {"conv": [0, 3]})
    report = shrink(model, masks, example=torch.zeros(1, 3, 8, 8))
    assert report.recipe == {}
    assert difference(model, report.model, 8) == 0


def test_the_outputs_are_compared_before_anything_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule about padding switched off, a border pixel differs."""
    model = settle(chain(padding=1))
    model[1].bias.data[1] = 4.0
    masks = masked(model, {"0": [1]})
    monkeypatch.setattr("starfire_cli.pruning.removable.keeps_constants", lambda _conv: True)
    with pytest.raises(StarfireError, match="the shrunk network's outputs differ by"):
        shrink(model, masks, example=torch.zeros(1, 3, 8, 8))
