"""What can go of a network, that a channel leaves all its consumers, and what consumers are seen to read."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption
from starfire_cli.models import build_model
from starfire_cli.pruning.channels.selection.consumer_samples import responses, sample_consumers
from starfire_cli.pruning.channels.selection.sampling import draw_places, generator, inputs_at, outputs_at
from starfire_cli.pruning.channels.selection.sites import ADDED, fixed_convolutions, kept_counts
from starfire_cli.pruning.channels.shrink import shrink
from tests.helpers.dead_channels import settle
from tests.pruning.channels.selection.networks import edited, images, tiny_resnet


def test_the_convolutions_that_nothing_is_added_to() -> None:
    network = edited(tiny_resnet())
    assert [site.layer for site in network.sites] == ["blocks.0.conv1", "blocks.1.conv1", "last"]
    assert network.left == [(name, ADDED) for name in ("conv", "blocks.0.conv2", "blocks.1.conv2")]
    assert [[r.name for r in site.consumers] for site in network.sites] == [
        ["blocks.0.conv2"],
        ["blocks.1.conv2"],
        ["fc"],
    ]
    pixels = network.sites[-1].consumers[0].inputs_CP
    assert pixels.tolist() == [[4 * c + p for p in range(4)] for c in range(12)]


@pytest.mark.parametrize(
    ("model", "stages", "blocks"), [("resnet20", 3, 3), pytest.param("resnet18", 4, 2, marks=pytest.mark.slow)]
)
def test_the_convolutions_of_known_networks(model: str, stages: int, blocks: int) -> None:
    net = build_model(model, num_classes=3)
    fixed = fixed_convolutions(net, (3, 32, 32))
    convolutions = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    assert [n for n in convolutions if n not in fixed] == [
        f"layer{s}.{b}.conv1" for s in range(1, stages + 1) for b in range(blocks)
    ]
    assert set(fixed.values()) == {ADDED}


def test_depthwise_and_grouped_convolutions() -> None:
    inverted = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1))
    grouped = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(*inverted, *grouped, nn.Linear(8, 3))
    network = edited(net)
    assert [site.layer for site in network.sites] == ["0", "2"]
    assert network.left == [
        ("1", "a depthwise convolution goes along with the layer that it filters"),
        ("3", "it meets a grouped convolution"),
        ("4", "it meets a grouped convolution"),
    ]
    network.remove(network.sites[0], [1, 6])
    assert not network.weight("1")[[0, 2, 3, 4, 5, 7]].any() and bool(network.weight("1")[[1, 6]].any())
    assert [r.name for r in network.sites[0].consumers] == ["2"] and not network.weight("2")[:, 0].any()


def test_a_removed_channel_leaves_every_reader_and_shrinking_changes_nothing_more() -> None:
    net = tiny_resnet()
    network = edited(net)
    for site, kept in zip(network.sites, ([0, 3, 7], [5], [1, 2, 3, 11]), strict=True):
        network.remove(site, kept)
    pruned = copy.deepcopy(net)
    network.write_to(pruned)
    assert not pruned.blocks[0].conv1.weight[[1, 2, 4, 5, 6]].any()
    assert not pruned.blocks[0].bn1.weight[[1, 2, 4, 5, 6]].any() and not pruned.blocks[0].bn1.bias[1].any()
    assert not pruned.blocks[0].conv2.weight[:, [1, 2, 4, 5, 6]].any()
    assert not pruned.last.bias[[0, 4, 5]].any() and not pruned.fc.weight.reshape(10, 12, 4)[:, [0, 4, 5]].any()
    assert network.removed == {"blocks.0.conv1": 5, "blocks.1.conv1": 7, "last": 8}
    # By hand: the network without these channels.
    small = copy.deepcopy(net)
    for module in (small.blocks[0], small.blocks[1]):
        kept = [0, 3, 7] if module is small.blocks[0] else [5]
        module.conv1.weight.data = module.conv1.weight.data[kept]
        module.bn1 = _cut_norm(module.bn1, kept)
        module.conv2.weight.data = module.conv2.weight.data[:, kept]
    small.last.weight.data, small.last.bias.data = (
        small.last.weight.data[[1, 2, 3, 11]],
        small.last.bias.data[[1, 2, 3, 11]],
    )
    small.fc.weight.data = small.fc.weight.data.reshape(10, 12, 4)[:, [1, 2, 3, 11]].flatten(1)
    x = images()
    with torch.no_grad():
        assert torch.allclose(pruned(x), small(x), atol=1e-5)
    report = shrink(pruned, network.masks, example=x[:1])
    assert {k: v.shape for k, v in report.model.state_dict().items()} == {
        k: v.shape for k, v in small.state_dict().items()
    }
    assert report.difference < 1e-12


def _cut_norm(norm: nn.BatchNorm2d, kept: list[int]) -> nn.BatchNorm2d:
    new = nn.BatchNorm2d(len(kept)).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, name).data = getattr(norm, name).data[kept].clone()
    return new


def test_what_came_in_dead_stays_dead_when_weights_are_replaced() -> None:
    net = tiny_resnet()
    network = edited(net)
    dead = torch.zeros(8, 8, 3, 3, dtype=torch.bool)
    dead[:, 2, 0] = True
    network.mask("blocks.0.conv2", dead)
    network.set_weight(network.sites[0].consumers[0], [2, 4], torch.ones(8, 2 * 9))
    assert torch.equal(network.weight("blocks.0.conv2")[:, 2] == 0, dead[:, 2])
    assert bool((network.weight("blocks.0.conv2")[:, 4] == 1).all())


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 1), "stride": (2, 3), "padding": (2, 0)},
        {"kernel_size": 3, "dilation": 2, "padding": "same"},
        {"kernel_size": 2, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 1, "stride": 2},
    ],
)
def test_inputs_at_places_give_the_outputs_there(options: dict[str, Any]) -> None:
    conv, x = nn.Conv2d(5, 4, bias=False, **options), torch.randn(3, 5, 9, 11)
    with torch.no_grad():
        y = conv(x)
        places = draw_places(3, y[0, 0].numel(), 6, generator(0, "conv"))
        seen = inputs_at(conv, x, places, y.shape[-1])
        assert seen.shape == (18, 5, conv.weight[0, 0].numel())
        assert torch.allclose(
            torch.einsum("mct,kct->mk", seen, conv.weight.flatten(2)), outputs_at(y, places), atol=1e-5
        )


def test_places_depend_on_names_only_and_small_maps_are_seen_whole() -> None:
    one, two = (draw_places(4, 100, 10, generator(3, "a", 0)) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, draw_places(4, 100, 10, generator(3, "b", 0)))
    assert draw_places(2, 4, 10, generator(0)).tolist() == [[0, 1, 2, 3]] * 2


def test_what_a_branch_should_give_makes_up_for_its_shortcut() -> None:
    """He et al.: Y2 + (Y1 - Y1'), here before the BatchNorm that stands between."""
    net = tiny_resnet()
    x = images(6)
    network = edited(net, (x[:4], x[4:]))
    network.remove(network.sites[0], [0, 1, 2])
    now = copy.deepcopy(net)
    network.write_to(now)
    (sample,) = sample_consumers(network, network.sites[1], places=1000, wanted=True)

    def seen(model: nn.Module) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        block = model.blocks[1]  # type: ignore[index,union-attr]
        block.conv2.register_forward_hook(lambda m, a, y: kept.update(x=a[0], y=y))
        block.register_forward_hook(lambda m, a, y: kept.update(shortcut=a[0]))
        with torch.no_grad():
            model(x)
        return kept

    before, after = seen(net), seen(now)
    norm = net.blocks[1].bn2
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    lost = (before["shortcut"] - after["shortcut"]) / scale.view(-1, 1, 1)
    expected = (before["y"] + lost).flatten(2).mT.flatten(0, 1)
    assert float(lost.abs().max()) > 0.1
    assert sample.wanted_MK is not None and torch.allclose(sample.wanted_MK, expected, atol=1e-3)
    assert sample.x_MCT.shape == (6 * 25, 8, 9)
    assert torch.allclose(
        torch.einsum("mct,kct->mk", sample.x_MCT, sample.weight_KCT),
        after["y"].flatten(2).mT.flatten(0, 1),
        atol=1e-4,
    )


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_responses_are_what_readers_see(pool: str) -> None:
    net, x = tiny_resnet(), images(6)
    network = edited(net, (x[:4], x[4:]))
    inner, _, last = responses(network, network.sites, pool)
    seen: dict[str, Tensor] = {}
    net.blocks[0].conv2.register_forward_hook(lambda m, a, y: seen.update(inner=a[0]))
    net.fc.register_forward_hook(lambda m, a, y: seen.update(last=a[0]))
    with torch.no_grad():
        net(x)
    maps = {"inner": seen["inner"].flatten(2), "last": seen["last"].reshape(6, 12, 4)}
    for found, name in ((inner, "inner"), (last, "last")):
        expected = maps[name].amax(2) if pool == "max" else maps[name].mean(2)
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_reader_of_several_sites_is_asked_for_its_own_part() -> None:
    """Behind a concatenation, what the other channels give is not these channels' to mend."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
            self.c = nn.Conv2d(9, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(torch.cat([self.a(x), self.b(x)], 1))).mean((2, 3))

    torch.manual_seed(0)
    net = settle(Joined())
    network = edited(net, (images(4),))
    one, two = network.sites
    for site, channels in ((one, slice(0, 4)), (two, slice(4, 9))):
        (sample,) = sample_consumers(network, site, places=7, wanted=True)
        own = torch.einsum("mct,kct->mk", sample.x_MCT, net.c.weight[:, channels].detach().flatten(2))
        assert torch.allclose(sample.wanted_MK, own, atol=1e-4)  # type: ignore[arg-type]


def test_a_target_that_leaves_nothing_of_a_layer() -> None:
    sites = edited(tiny_resnet()).sites
    assert kept_counts(sites, 0.5) == [4, 4, 6]
    assert kept_counts(sites, 0.3) == [5, 5, 8]  # int(8 * 0.7), int(12 * 0.7)
    with pytest.raises(
        BadOption, match=r"--target 0.9 leaves no channel of blocks.0.conv1, blocks.1.conv1; at most --t"
    ):
        kept_counts(sites, 0.9)
    assert kept_counts(sites, 0.875) == [1, 1, 1]
