"""Compression methods against their papers on small networks."""

from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.models import build_model
from starfire_cli.pruning import CHANNEL_METHODS
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.channels.shrink import shrink
from tests.helpers.dead_channels import settle
from tests.pruning.channels.selection.networks import TinyResNet, edited, images, tiny_resnet


def pruned(spec: str, net: nn.Module, target: float = 0.0, *, batches: tuple[Tensor, ...] = ()) -> EditedNetwork:
    network = edited(net, batches)
    CHANNEL_METHODS.build(spec).prune(network, target)
    return network


def written(network: EditedNetwork, net: nn.Module) -> nn.Module:
    new = copy.deepcopy(net)
    network.write_to(new)
    return new


@torch.no_grad()
def change(before: nn.Module, after: nn.Module, side: int = 10) -> float:
    x = images(8, side).to(next(before.parameters()).dtype)
    return float((before(x) - after(x)).abs().max() / before(x).abs().max())


@pytest.mark.parametrize("target", [0.25, 0.3, 0.6])
def test_l1_filter_keeps_the_filters_with_the_largest_sums(target: float) -> None:
    net = tiny_resnet()
    network = pruned("l1-filter", net, target)
    for name in ("blocks.0.conv1", "blocks.1.conv1", "last"):
        weight = net.get_submodule(name).weight.detach()
        sums = [float(w.double().abs().sum()) for w in weight]
        order = sorted(range(len(sums)), key=lambda k: (sums[k], k))
        kept = order[len(sums) - int(len(sums) * (1 - target)) :]
        alive = network.masks[f"{name}.weight"].flatten(1).any(1)
        assert alive.nonzero().flatten().tolist() == sorted(kept)
    assert network.masks.keys() == {
        f"{name}.weight" for b in range(2) for name in (f"blocks.{b}.conv1", f"blocks.{b}.conv2", "last", "fc")
    }


# Channels that stay of the first convolution of each block, by the rules of the public code
# (rethinking-network-pruning, cifar/l1-norm-pruning): layer numbers from 1 that are even, a rate a stage, some skipped.
def counts_of_the_code(blocks: int, rates: tuple[float, ...], skip: set[int]) -> list[int]:
    kept = []
    for layer in range(2, 6 * blocks + 2, 2):
        stage = (layer - 2) // (2 * blocks)
        width = 16 << stage
        kept.append(width if layer in skip else int(width * (1 - rates[stage])))
    return kept


@pytest.mark.parametrize(
    ("model", "preset", "blocks", "rates", "skip"),
    [
        ("resnet56", "resnet56-b", 9, (0.6, 0.3, 0.1), {16, 18, 20, 34, 38, 54}),
        pytest.param("resnet56", "resnet56-a", 9, (0.1, 0.1, 0.1), {16, 20, 38, 54}, marks=pytest.mark.slow),
        pytest.param("resnet110", "resnet110-a", 18, (0.5, 0.0, 0.0), {36}, marks=pytest.mark.slow),
        pytest.param("resnet110", "resnet110-b", 18, (0.5, 0.4, 0.3), {36, 38, 74}, marks=pytest.mark.slow),
    ],
)
def test_presets_are_those_of_the_public_code(
    model: str, preset: str, blocks: int, rates: tuple[float, ...], skip: set[int]
) -> None:
    net = build_model(model, num_classes=10)
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    network = EditedNetwork(net, {}, layers=layers, image=(3, 8, 8))
    CHANNEL_METHODS.build(f"l1-filter:preset={preset}").prune(network, 0.0)
    left = [len(site.numbers) - network.removed.get(site.layer, 0) for site in network.sites]
    assert left == counts_of_the_code(blocks, rates, skip)


def test_stages_that_a_network_does_not_have() -> None:
    with pytest.raises(BadOption, match="rates for 3 stages, and the layers here have 2 widths: 8, 12"):
        pruned("l1-filter:stages=0.1/0.2/0.3", tiny_resnet())
    network = pruned("l1-filter:stages=0.5/0.25,skip=2", tiny_resnet())
    assert network.removed == {"blocks.1.conv1": 4, "last": 3}


def test_slimming_is_one_threshold_over_all_scales() -> None:
    net = tiny_resnet()
    network = pruned("slimming:constants=zero", net, 0.5)
    # conv, the second convolutions of both blocks and so the stem's BatchNorm are one sum: a channel of it counts by
    # the largest scale, and goes from all of them.
    trunk = (
        torch.stack([n.weight.detach() for n in (net.bn, net.blocks[0].bn2, net.blocks[1].bn2)]).abs().amax(0).tolist()
    )
    scores = [(g, f"trunk {c}") for c, g in enumerate(trunk)]
    for b in range(2):
        scores += [(abs(float(g)), f"{b} {c}") for c, g in enumerate(net.blocks[b].bn1.weight.tolist())]
    gone = {name for _, name in sorted(scores)[:12]}
    found = {f"trunk {c}" for c in _dead(network, "conv")}
    found |= {f"{b} {c}" for b in range(2) for c in _dead(network, f"blocks.{b}.conv1")}
    assert found == gone
    assert _dead(network, "conv") == _dead(network, "blocks.0.conv2") == _dead(network, "blocks.1.conv2")
    after = written(network, net)
    assert not after.bn.bias[_dead(network, "conv")].any()
    assert shrink(after, network.masks, example=images(1)).difference < 1e-12


def _dead(network: EditedNetwork, layer: str) -> list[int]:
    mask = network.masks.get(f"{layer}.weight", torch.ones(1, 1))
    return (~mask.flatten(1).any(1)).nonzero().flatten().tolist() if mask.dtype == torch.bool else []


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 1])
def test_slimming_folds_the_constants_of_channels_without_a_scale(padding: int) -> None:
    """Exact where readers do not pad; "zero" is not."""
    torch.manual_seed(0)
    net = settle(TinyResNet(padding=1 + padding))  # the second convolution of a block pads by 1 - padding
    for block in net.blocks:
        block.bn1.weight[:4], block.bn1.bias[:4] = 0, 1.5
    for constants in ("fold", "zero"):
        network = pruned(f"slimming:constants={constants}", net, 8 / 24)
        assert [_dead(network, f"blocks.{b}.conv1") for b in range(2)] == [[0, 1, 2, 3]] * 2
        difference = change(net.double(), written(network, net).double())
        assert (difference < 1e-12) == (constants == "fold" and padding == 1)
        report = shrink(written(network, net), network.masks, example=images(1))
        assert report.model.blocks[0].conv1.out_channels == 4
        assert not any(layer.stayed for layer in report.layers)
        net.float()


@torch.no_grad()
def test_a_constant_that_several_layers_read() -> None:
    """One has a BatchNorm behind it, one a bias, one neither: its constant waits for a new bias."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
            self.a, self.norm = nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)
            self.b, self.c = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.bn(self.conv(x)))
            return torch.cat([torch.relu(self.norm(self.a(x))), torch.relu(self.b(x)), torch.relu(self.c(x))], 1)

    torch.manual_seed(0)
    net = settle(Forked())
    net.bn.weight[:3], net.bn.bias[:3] = 0, torch.tensor([1.0, 2.0, -1.0])
    network = pruned("slimming", net, 0.5)
    after = written(network, net)
    report = shrink(after, network.masks, example=images(1))
    assert report.model.conv.out_channels == 3 and report.model.c.bias is not None
    for model in (after, report.model):
        assert change(net, model) < 1e-5


@torch.no_grad()
def test_slimming_leaves_every_layer_its_strongest_channel() -> None:
    net = tiny_resnet()
    net.blocks[0].bn1.weight.mul_(1e-6)
    network = pruned("slimming", net, 0.5)
    alive = [c for c in range(8) if c not in _dead(network, "blocks.0.conv1")]
    assert alive == [int(net.blocks[0].bn1.weight.abs().argmax())]
    assert sum(len(_dead(network, n)) for n in ("conv", "blocks.0.conv1", "blocks.1.conv1")) == 12
    with pytest.raises(BadOption, match=r"at most --target 0.875 leaves one everywhere"):
        pruned("slimming", net, 0.95)
    with pytest.raises(BadOption, match="no channel that can go has one"):
        pruned("slimming", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), 0.5)


@pytest.mark.parametrize("spec", ["l1-filter", "l1-filter:preset=vgg16", "thinet", "lasso-channel", "pfa"])
def test_a_network_of_which_nothing_can_go(spec: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(
        BadOption, match="no convolution has channels that can go one by one; 0: a channel of it is an ou"
    ):
        pruned(spec, net, 0.5, batches=(images(8),))


@torch.no_grad()
def test_ssl_finds_the_groups_that_are_zero() -> None:
    net = tiny_resnet()
    small = 9e-5 * torch.ones(8, 3, 3)
    net.blocks[0].conv1.weight[2] = small  # a filter
    net.blocks[0].conv2.weight[:, 5] = -small  # a channel
    net.blocks[0].conv2.weight[:, 1, 0, 2] = 0.5e-4  # a shape
    net.blocks[1].conv2.weight.fill_(2e-5)  # a layer with a shortcut
    net.blocks[0].bn1.bias[2] = 9.0  # so that the filter's BatchNorm gives a constant that is not 0
    before = copy.deepcopy(net)
    expected = {
        "filter": {"blocks.0.conv1": 72, "blocks.1.conv2": 576},
        "channel": {"blocks.0.conv2": 72, "blocks.1.conv2": 576},
        "shape": {"blocks.0.conv2": 80, "blocks.1.conv2": 576},
        "depth": {"blocks.1.conv2": 576},
        "filter+channel": {"blocks.0.conv1": 72, "blocks.0.conv2": 72, "blocks.1.conv2": 576},
    }
    for units, dead in expected.items():
        network = pruned(f"ssl:units={units}", net)
        found = {k.removesuffix(".weight"): int((~m).sum()) for k, m in network.masks.items() if not m.all()}
        assert found == dead, units
    after = written(pruned("ssl", net), net)
    masks = pruned("ssl", net).masks
    report = shrink(after, masks, example=images(1))
    assert report.difference < 1e-12
    assert report.model.blocks[0].conv1.out_channels == 7  # 5 is read by nothing; 2 carries a constant, and conv2 pads
    assert pruned("ssl:threshold=0.00001", before).masks == {}
    net.last.weight.mul_(1e-6)
    with pytest.raises(StarfireError, match=r"all weights of last are below 0.0001, and no shortcut leads past it"):
        pruned("ssl", net)


def with_copies() -> nn.Module:
    """A network in which every second channel that can go repeats the one before it, and is read by half."""
    net = tiny_resnet()
    with torch.no_grad():
        for block in net.blocks:
            for tensor in (block.conv1.weight, block.bn1.weight, block.bn1.bias, block.bn1.running_mean):
                tensor[1::2] = tensor[::2]
            block.bn1.bias.abs_().add_(1)  # no channel is dead
            block.bn1.running_var[1::2] = block.bn1.running_var[::2]
            block.conv2.weight[:, 1::2] = 0.5 * block.conv2.weight[:, ::2]
        net.last.bias.abs_().add_(3)
        net.last.weight[1::2], net.last.bias[1::2] = net.last.weight[::2], net.last.bias[::2]
        weight = net.fc.weight.view(10, 12, 4)
        weight[:, 1::2] = 0.5 * weight[:, ::2]
    return net


@pytest.mark.parametrize("spec", ["thinet", "lasso-channel"])
def test_channels_that_repeat_others_cost_nothing(spec: str) -> None:
    """What is left is rescaled, or fitted, to what was there."""
    net = with_copies()
    x = images(80)
    network = pruned(spec, net, 0.5, batches=(x[:50], x[50:]))
    for name, width in (("blocks.0.conv1", 8), ("blocks.1.conv1", 8), ("last", 12)):
        pairs = defaultdict(int)
        for c in _dead(network, name):
            pairs[c // 2] += 1
        assert dict(pairs) == dict.fromkeys(range(width // 2), 1), name
    after = written(network, net)
    assert change(net, after) < 1e-4
    report = shrink(after, network.masks, example=x[:1])
    assert report.difference < 1e-12 and report.parameters[1] < 0.6 * report.parameters[0]


def test_lasso_loses_less_than_the_l1_norm_does() -> None:
    net, x = tiny_resnet(), images(80)
    lost = {
        spec: change(net, written(pruned(spec, net, 0.25, batches=batches), net))
        for spec, batches in (("l1-filter", ()), ("thinet", (x,)), ("lasso-channel", (x,)))
    }
    assert lost["lasso-channel"] < lost["thinet"] < lost["l1-filter"], lost


def test_pfa_removes_what_repeats_or_never_varies() -> None:
    net, x = with_copies(), images(40)
    network = pruned("pfa:recipe=size", net, 0.5, batches=(x,))
    assert sum(network.removed.values()) == 14
    with torch.no_grad():
        net.blocks[0].bn1.weight[6:] = 0
    network = pruned("pfa:recipe=energy,energy=1", net, batches=(x,))
    assert {6, 7} <= set(_dead(network, "blocks.0.conv1"))
    kl = pruned("pfa", net, batches=(x,))
    assert all(0 < kl.removed[site.layer] < len(site.numbers) for site in kl.sites)


@pytest.mark.parametrize(
    ("spec", "target", "count", "says"),
    [
        ("pfa", 0.0, 11, "--calibrate 11 is too few for last and its 12 channels"),
        (
            "lasso-channel",
            0.5,
            3,
            "--calibrate 3 gives 30 samples of blocks.0.conv2, and 37 unknowns are fitted to them; at least",
        ),
        (
            "lasso-channel",
            0.5,
            20,
            "--calibrate 20 gives 20 samples of fc, and 25 unknowns are fitted to them; at least --calibrate 25, or",
        ),
        (
            "thinet",
            0.5,
            5,
            "--calibrate 5 gives 5 samples of fc, and 6 unknowns are fitted to them; at least --calibrate 6, or exem",
        ),
        ("thinet", 0.9, 4, "--target 0.9 leaves no channel of blocks.0.conv1"),
        ("lasso-channel", 0.9, 4, "--target 0.9 leaves no channel of blocks.0.conv1"),
        ("pfa:recipe=size", 0.95, 12, "leaves 1 channels for 3 layers; at most --target 0.892"),
    ],
)
def test_what_cannot_be_done_is_said_before_it_is_begun(spec: str, target: float, count: int, says: str) -> None:
    with pytest.raises(BadOption) as error:
        pruned(spec, tiny_resnet(), target, batches=(images(count),))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("l1-filter:preset=resnet57", "unknown preset 'resnet57'"),
        ("l1-filter:preset=vgg16,skip=2", "leave stages and skip out"),
        ("l1-filter:stages=0.1/1", "each is a share of the filters"),
        ("l1-filter:stages=a", "not a list of rates"),
        ("l1-filter:skip=1/x", "not a list of layers"),
        ("slimming:constants=drop", "unknown constants 'drop'; there are: fold, zero"),
        ("slimming:penalty=1", "'penalty=1' is not an option of slimming"),
        ("ssl:units=kernel", "unknown unit 'kernel'"),
        ("ssl:threshold=0", "above 0"),
        ("thinet:grow=both", "unknown grow 'both'"),
        ("thinet:places=0", "1 or more outputs"),
        ("lasso-channel:places=0", "1 or more outputs"),
        ("pfa:recipe=kld", "unknown recipe 'kld'"),
        ("pfa:pool=sum", "unknown pool 'sum'"),
        ("pfa:recipe=energy,energy=0", "above 0 and at most 1"),
        ("pfa:energy=0.9", "belongs to recipe=energy"),
    ],
)
def test_options_that_mean_nothing(spec: str, says: str) -> None:
    with pytest.raises(BadOption) as error:
        CHANNEL_METHODS.build(spec)
    assert says in str(error.value) and spec in str(error.value)


@pytest.mark.parametrize("name", CHANNEL_METHODS.names())
def test_every_member_says_what_it_needs_and_its_options(name: str) -> None:
    method = CHANNEL_METHODS.build(name)
    assert isinstance(method.takes_target, bool) and isinstance(method.looks_at_images, bool)
    assert CHANNEL_METHODS.spec(method) == name
