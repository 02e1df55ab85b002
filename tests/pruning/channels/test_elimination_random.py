"""Random small networks with random dead channels: elimination and shrinking must leave their function alone."""

from __future__ import annotations

import copy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from starfire_cli.pruning.channels.elimination import eliminate
from starfire_cli.pruning.channels.recipe import apply_shrink, compose_recipes
from starfire_cli.pruning.channels.shrink import shrink

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
KINDS = ["conv"] * 3 + "bn residual dense squeeze depthwise grouped pool shuffle scaled".split()  # noqa: SIM905
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.GELU, nn.Identity)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(width, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.b = nn.Conv2d(5, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.bn(self.a(x))))
        y += x
        return F.relu(y, inplace=True)


class Dense(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.relu(self.a(x))], 1)


class Squeeze(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.b(F.silu(self.a(x.mean((2, 3), keepdim=True)))))
        return scale * x


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat((second, first), dim=1)


class Scaled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 - x * self.scale


def random_net(draw: st.DrawFn) -> tuple[nn.Module, bool]:
    """A network of drawn blocks for (N, 3, 10, 10), and whether it takes other sizes too."""
    blocks: list[nn.Module] = []
    width = 3
    for _ in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(KINDS))
        if kind == "conv":
            out, side = draw(st.integers(2, 8)), draw(st.sampled_from([1, 3]))
            mode = draw(st.sampled_from(["zeros", "zeros", "replicate"]))
            padding = draw(st.sampled_from([0, side // 2, 1]))
            blocks += [nn.Conv2d(width, out, side, padding=padding, bias=draw(st.booleans()), padding_mode=mode)]
            blocks += [nn.BatchNorm2d(out)] if draw(st.booleans()) else []
            blocks += [draw(st.sampled_from(ACTIVATIONS))()]
            width = out
        elif kind == "bn":
            blocks += [nn.BatchNorm2d(width)]
        elif kind == "residual":
            blocks += [Residual(width)]
        elif kind == "dense":
            blocks, width = [*blocks, Dense(width)], width + 3
        elif kind == "squeeze":
            blocks += [Squeeze(width)]
        elif kind == "depthwise":
            times = draw(st.integers(1, 2))
            blocks += [nn.Conv2d(width, width * times, 3, padding=1, groups=width, bias=draw(st.booleans())), nn.ReLU()]
            width *= times
        elif kind == "grouped":
            blocks += [nn.Conv2d(width, 4, 1), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU()]
            width = 6
        elif kind == "pool":
            pools = (
                nn.MaxPool2d(3, 1, padding=1),
                nn.AvgPool2d(3, 1, padding=1),
                nn.AvgPool2d(3, 1, padding=1, count_include_pad=False),
                nn.MaxPool2d(2, ceil_mode=True),
            )
            blocks += [copy.deepcopy(draw(st.sampled_from(pools)))]
        elif kind == "shuffle" and width % 2 == 0:
            blocks += [Shuffle()]
        elif kind == "scaled":
            blocks += [Scaled(width)]
    any_size = draw(st.booleans())
    body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1 if any_size else 2), nn.Flatten())
    features = width if any_size else width * 4
    hidden = draw(st.integers(2, 6))
    head = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 3))
    return nn.Sequential(body, head), any_size


def kill(draw: st.DrawFn, net: nn.Module) -> dict[str, Tensor]:
    """Random weights and statistics; masks with whole rows, whole kernels and single weights dead."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    share = draw(st.sampled_from([0.3, 0.6, 1.0]))
    masks = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.1)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.data
            weight.copy_(torch.randn(weight.shape, generator=generator))
            mask = torch.rand(weight.shape, generator=generator) > 0.2
            mask &= (torch.rand(weight.shape[:2], generator=generator) > 0.3).reshape(
                *weight.shape[:2], *[1] * (weight.ndim - 2)
            )
            mask[torch.rand(len(weight), generator=generator) < share] = False
            weight.masked_fill_(~mask, 0)
            masks[f"{name}.weight"] = mask
    return masks


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, dict[str, Tensor], bool]:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    net, any_size = random_net(draw)
    return net.eval(), kill(draw, net), any_size


@torch.no_grad()
def outputs(net: nn.Module, *, any_size: bool) -> list[Tensor]:
    """In float64, on images of several sizes where the network takes them."""
    twin = copy.deepcopy(net).double().eval()
    generator = torch.Generator().manual_seed(5)
    sizes = (10, 13, 4) if any_size else (10,)
    found = []
    for size in sizes:
        try:
            found.append(twin(torch.randn(3, 3, size, size, generator=generator, dtype=torch.float64)))
        except RuntimeError:  # a window larger than the image
            assert size == 4
    return found


def assert_same(before: list[Tensor], after: list[Tensor]) -> None:
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5 * float(old.abs().max()) + 1e-12)


@SETTINGS
@given(networks())
def test_elimination_leaves_the_function_alone(drawn: tuple[nn.Module, dict[str, Tensor], bool]) -> None:
    net, masks, any_size = drawn
    before = outputs(net, any_size=any_size)
    report = eliminate(net, masks, example=torch.zeros(1, 3, 10, 10))
    assert report.declined is None
    assert_same(before, outputs(net, any_size=any_size))
    for key, mask in report.masks.items():
        assert not (mask & ~masks[key]).any()
        assert not net.get_parameter(key)[~mask].any()
    again = eliminate(net, report.masks, example=torch.zeros(1, 3, 10, 10))
    assert again.weights == 0


@SETTINGS
@given(networks())
def test_eliminated_columns_are_those_that_never_change(drawn: tuple[nn.Module, dict[str, Tensor], bool]) -> None:
    """Against brute force: what the linear layers read, on many images."""
    net, masks, _ = drawn
    reads: dict[str, Tensor] = {}
    twin = copy.deepcopy(net).double().eval()
    for name, module in twin.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _m, inputs, _o, name=name: reads.__setitem__(name, inputs[0]))
    with torch.no_grad():
        twin(10 * torch.randn(64, 3, 10, 10, dtype=torch.float64))
    report = eliminate(net, masks, example=torch.zeros(1, 3, 10, 10))
    for layer in report.layers:
        read = reads[layer.layer]
        spread = (read - read[0]).abs().amax(0)
        assert all(spread[c] <= 1e-9 * read[0, c].abs() for c in layer.columns)
        assert len(layer.columns) + layer.dead_before + sum(layer.kept.values()) == read.shape[1]


@SETTINGS
@given(networks())
def test_shrinking_leaves_the_function_alone(drawn: tuple[nn.Module, dict[str, Tensor], bool]) -> None:
    net, masks, any_size = drawn
    full = copy.deepcopy(net)
    report = shrink(net, masks, example=torch.zeros(1, 3, 10, 10))
    assert report.declined is None
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), full.state_dict().values(), strict=True))
    assert_same(outputs(net, any_size=any_size), outputs(report.model, any_size=any_size))
    assert report.parameters[1] == sum(p.numel() for p in report.model.parameters())
    for key, mask in report.masks.items():
        weight = report.model.get_parameter(key)
        assert weight.shape == mask.shape
        assert not weight[~mask].any()
    rebuilt = copy.deepcopy(full)
    apply_shrink(rebuilt, report.recipe)
    rebuilt.load_state_dict(report.model.state_dict())
    assert_same(outputs(report.model, any_size=any_size), outputs(rebuilt, any_size=any_size))
    again = shrink(report.model, report.masks, example=torch.zeros(1, 3, 10, 10))
    both = copy.deepcopy(full)
    apply_shrink(both, compose_recipes(report.recipe, again.recipe))
    both.load_state_dict(again.model.state_dict())
