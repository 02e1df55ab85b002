"""Linear weights behind dead channels: by hand, on networks people use, and where a naive reading would be wrong."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.models import build_model
from starfire_cli.pruning.elimination import EliminationReport, eliminate
from starfire_cli.pruning.graph import CHANNELWISE, FUNCTIONS

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


def kill(model: nn.Module, **rows: slice | list[int]) -> Masks:
    """Masks for the named layers with these output channels dead; the weights are zeroed."""
    masks = {}
    for name, dead in rows.items():
        key = f"{name}.weight"
        weight = model.get_parameter(key).data
        masks[key] = torch.ones_like(weight, dtype=torch.bool)
        masks[key][dead] = False
        weight.masked_fill_(~masks[key], 0)
    return masks


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


@torch.no_grad()
def difference(before: nn.Module, after: nn.Module, *sizes: int) -> float:
    """Largest difference of outputs over the largest output, in float64."""
    worst = 0.0
    for size in sizes:
        x = torch.randn(8, 3, size, size, dtype=torch.float64)
        a, b = copy.deepcopy(before).double().eval()(x), copy.deepcopy(after).double().eval()(x)
        worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst


def run(model: nn.Module, masks: Masks, size: int = 12) -> tuple[nn.Module, EliminationReport]:
    """The model before, and the report."""
    before = copy.deepcopy(model)
    return before, eliminate(model, masks, example=torch.zeros(1, 3, size, size))


def test_a_plain_network_by_hand() -> None:
    model = settle(plain_net())
    masks = kill(model, **{"3": [1, 4]})
    masks["8.weight"] = torch.ones(4, 5, dtype=torch.bool)
    before, report = run(model, masks)
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
    masks = kill(model, **{"3": [0, 1, 2, 3]})
    naive = copy.deepcopy(model)
    naive[8].weight.data[:, [0, 1, 2, 3]] = 0
    before, report = run(model, masks)
    assert report.layers[0].columns == (0, 1, 2, 3)
    assert difference(before, naive, 12) > 1e-2
    assert difference(before, model, 12) < 1e-6


def test_without_a_bias_only_zeros_go() -> None:
    model = settle(plain_net(bias=False))
    masks = kill(model, **{"3": [0, 1]})
    model[4].bias.data[:2] = torch.tensor([-50.0, 50.0])  # relu makes 0 of the first, and not of the second
    before, report = run(model, masks)
    assert report.layers[0].columns == (0,)
    assert report.layers[0].kept["carries a constant, and the layer has no bias to take it"] == 1
    assert model[8].bias is None
    assert difference(before, model, 12) < 1e-12


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_map_meets_padding(padding: int) -> None:
    """A constant that a padded convolution reads is not one at the border, and the pool's mean follows the size."""
    model = settle(plain_net(padding=padding))
    model[1].bias.data[:] = 5.0
    masks = kill(model, **{"0": slice(None)})
    before, report = run(model, masks)
    assert len(report.layers[0].columns) == (0 if padding else 5)
    assert bool(report.layers[0].notes) == bool(padding)
    assert difference(before, model, 12, 20) < 1e-6


def test_one_pixel_maps_do_not_pass_for_constant_ones() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), *plain_net(padding=1)[3:]))
    model[2] = nn.Conv2d(4, 5, 3, padding=1)
    masks = kill(model, **{"0": slice(None)})
    model[0].bias.data[:] = 1.0
    before, report = run(model, masks, size=1)
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
        masks = kill(model, **{"3": [2]})
        model[4].bias.data[2] = 3.0
        before, report = run(model, masks)
        assert (report.layers[0].columns == (2,)) is goes
        assert difference(before, model, 12, 15) < 1e-6


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
    before, report = run(one, kill(one, **{last: [20, 21]}), size=32)
    assert report.layers[0].columns == ()
    assert report.layers[0].kept["a dead channel, but added to a live one"] == 2
    masks = {}
    for row, offset in RESIDUAL[name]:
        masks |= kill(model, **{row: [c + offset + (8 if shift and offset == 16 else 0) for c in (5, 6)]})
    before, report = run(model, masks, size=32)
    assert report.layers[0].columns == (5 + shift, 6 + shift)
    assert len(report.layers[0].producers) >= 3
    assert difference(before, model, 32, 40) < 1e-6


def test_flattened_maps_take_a_column_a_pixel() -> None:
    model = settle(plain_net())
    model[6] = nn.AdaptiveMaxPool2d((2, 3))
    model[8] = nn.Linear(30, 4)
    masks = kill(model, **{"3": [1]})
    before, report = run(model, masks)
    assert report.layers[0].columns == tuple(range(6, 12))
    assert difference(before, model, 12) < 1e-6


def test_dead_neurons_carry_on_to_the_next_linear_layer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))
    masks = kill(model, **{"1": [0, 5]})
    before, report = run(model, masks, size=2)
    assert [r.columns for r in report.layers] == [(), (0, 5)]
    assert difference(before, model, 2) < 1e-6


def thin_out(model: nn.Module) -> Masks:
    """A third of the channels of every convolution dead."""
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return kill(model, **{n: slice(0, len(model.get_parameter(f"{n}.weight")) // 3) for n in convs})


@pytest.mark.parametrize(
    ("name", "last"),
    [("mobilenet_v2", "features.18.0"), ("mobilenet_v3_small", "features.12.0"), ("shufflenet_v2_x0_5", "conv5.0")],
)
def test_networks_people_use(name: str, last: str) -> None:
    """One convolution feeds their heads: its dead channels are the columns that go."""
    torch.manual_seed(0)
    model = settle(build_model(name, num_classes=4))
    before, report = run(model, thin_out(model), size=32)
    head = next(r for r in report.layers if r.producers[0].name == last)
    assert head.columns == tuple(range(head.producers[0].channels // 3))
    assert difference(before, model, 32) < 1e-6


def test_concatenated_channels() -> None:
    torch.manual_seed(0)
    model = settle(torchvision.models.DenseNet(6, (2, 2), 12, num_classes=4))
    before, report = run(model, thin_out(model), size=32)
    assert report.layers[0].columns
    assert difference(before, model, 32) < 1e-6
    squeeze = settle(build_model("squeezenet1_1", num_classes=4))
    assert run(squeeze, thin_out(squeeze), size=32)[1].layers == ()


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
    before, report = run(model, thin_out(model), size=size)
    assert report.declined is None
    assert report.weights > 0 or name in ("swin_t", "convnext_tiny", "vit_b_32")
    assert difference(before, model, size) < 2e-6


def test_only_the_layers_asked_for() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Linear(6, 3))
    masks = kill(model, **{"1": [0]})
    report = eliminate(model, masks, example=torch.zeros(1, 3, 2, 2), only=["1"])
    assert report.weights == 0
    assert report.layers[1].kept == {"not asked for": 6}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.b(F.relu(self.a(x)))))


def test_a_layer_used_twice_is_left_alone() -> None:
    model = Shared()
    masks = kill(model, a=[0, 1])
    state = copy.deepcopy(model.state_dict())
    report = eliminate(model, masks, example=torch.zeros(1, 4))
    assert report.layers[1].kept == {"is used 2 times": 4}
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[4].weight = tied[2].weight
    report = eliminate(tied, kill(tied, **{"0": [1]}), example=torch.zeros(1, 4))
    assert [list(r.kept) for r in report.layers[1:]] == [["shares its weight with another layer"]] * 2
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


def test_what_torch_fx_cannot_trace_is_declined() -> None:
    model = Branching()
    report = eliminate(model, {}, example=torch.zeros(1, 3, 2, 2))
    assert report.declined is not None
    assert report.declined.startswith("torch.fx cannot trace the model: TraceError")
    assert "\n" not in report.declined
    assert report.layers == ()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.conv(x)))  # drops in eval mode too
        return self.fc(x.mean((2, 3)))


def test_a_model_that_is_random_in_eval_mode_is_left_alone() -> None:
    model = Noisy()
    masks = kill(model, conv=[0])
    model.conv.bias.data[:] = 1
    report = eliminate(model, masks, example=torch.zeros(1, 3, 4, 4))
    assert report.layers[0].columns == ()
    assert report.layers[0].notes == ("dropout is not followed",)


def test_an_alias_that_the_graph_does_not_show_cannot_do_harm() -> None:
    """An unlisted view, written to in place, changes the tensor behind it. Outputs are compared: nothing is done."""

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y.narrow(1, 0, 2).add_(x[:, :2])
            return self.fc(y.mean((2, 3)))

    model = Aliased()
    masks = kill(model, conv=[0, 3])
    before, report = run(model, masks)
    assert report.declined is not None
    assert "outputs would change" in report.declined
    assert torch.equal(before.fc.weight, model.fc.weight)
    assert report.masks.keys() == masks.keys()


def test_masks_that_do_not_fit() -> None:
    model = plain_net()
    with pytest.raises(Mismatch, match=r"8\.weight: 20 pruned weights are not zero"):
        eliminate(model, {"8.weight": torch.zeros(4, 5, dtype=torch.bool)})
    with pytest.raises(StarfireError, match=r"'9\.weight' has shape .*no such parameter"):
        eliminate(model, {"9.weight": torch.ones(4, 5, dtype=torch.bool)})
    with pytest.raises(StarfireError, match="a parameter of shape"):
        eliminate(model, {"8.weight": torch.ones(4, 6, dtype=torch.bool)})
    with pytest.raises(StarfireError, match="does not take an image of shape"):
        eliminate(model, {}, example=torch.zeros(1, 2, 9, 9))


def test_sizes_are_tried_when_no_example_is_given() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))
    report = eliminate(model, kill(model, **{"0": [1]}))
    assert report.layers[0].columns == tuple(range(676, 1352))
    with pytest.raises(StarfireError, match="takes no square image"):
        eliminate(nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), {})


def test_modes_are_as_before() -> None:
    model = plain_net().train()
    model[4].eval()
    eliminate(model, kill(model, **{"3": [0]}), example=torch.zeros(1, 3, 9, 9))
    assert [m.training for m in model] == [i != 4 for i in range(9)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_goes_through_everything_that_is_followed(dtype: torch.dtype) -> None:
    """The analysis marks "depends on the image" by NaN: no listed operation may make a number of it."""
    x = torch.full((1, 4, 6, 6), float("nan"), dtype=dtype)
    for kind in CHANNELWISE:
        module = kind(2) if "Pool" in kind.__name__ else kind()
        assert module.eval()(x.clone()).isnan().all(), kind
    for function, role in FUNCTIONS.items():
        if role == "channelwise":
            pools = (F.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
            out = function(x.clone(), 2) if function in pools else function(x.clone())
            assert out.isnan().all(), function
