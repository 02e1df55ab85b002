"""Finds the convolutions whose output channels can go one by one, and the layers that consume each of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import pruned
from starfire_cli.pruning.channels.constants import find_constants
from starfire_cli.pruning.channels.coupling import Channels, find_channels
from starfire_cli.pruning.channels.graph import Traced, fitting_image, trace

ADDED = "its outputs are added to others"


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A layer that consumes a site's channels: a convolution of one group, or a linear layer.

    Args:
        name: module name.
        node: where it is called.
        inputs_CP: the inputs that carry each channel, (C, P); behind a flattening these are its P pixels.
        alone: whether it consumes nothing but these channels.
    """

    name: str
    node: fx.Node
    inputs_CP: Tensor
    alone: bool


@dataclass(frozen=True, kw_only=True)
class Site:
    """A convolution whose outputs nothing is added to.

    Args:
        layer: module name.
        numbers: the channel number of each output, (C,); no other layer's outputs have one of them.
        consumers: in the order of the graph, at least one.
    """

    layer: str
    numbers: Tensor
    consumers: tuple[Consumer, ...]


def find_sites(traced: Traced, channels: Channels, layers: Collection[str]) -> tuple[list[Site], list[tuple[str, str]]]:
    """The sites among `layers` in the order of the graph, and (layer, reason) of the other convolutions of `layers`."""
    sites, left = [], []
    order = [str(n.target) for n in traced.root.graph.nodes if traced.role(n) == "conv"]
    writing = Counter(n for numbers in writers(traced, channels).values() for n in numbers.tolist())
    reading = _inputs_by_number(channels)
    for name in (name for name in dict.fromkeys(order) if name in layers):
        found = _site(traced, channels, name, writing, reading)
        if isinstance(found, Site):
            sites.append(found)
        else:
            left.append((name, found))
    unseen = [x for x in layers if x not in order and isinstance(traced.root.get_submodule(x), nn.Conv2d)]
    return sites, [*left, *((x, "it is not followed") for x in unseen)]


def fixed_convolutions(net: nn.Module, image: tuple[int, int, int]) -> dict[str, str]:
    """The convolutions that are no sites, and the reason of each.

    Args:
        net: any network.
        image: (channels, height, width) that it takes.

    Raises StarfireError where it cannot be traced.
    """
    traced = trace(net)
    found = find_constants(traced, {}, fitting_image(traced, torch.zeros(1, *image)))
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    return dict(find_sites(traced, find_channels(traced, found), layers)[1])


def writers(traced: Traced, channels: Channels) -> dict[str, Tensor]:
    """The channel numbers that each layer's outputs bring in: of convolutions but depthwise ones, and linear layers."""
    modules = {name: traced.root.get_submodule(name) for name in channels.owners}
    return {
        name: channels.owners[name]
        for name, module in modules.items()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def kept_counts(sites: Sequence[Site], target: float) -> list[int]:
    """The number of channels that each site keeps at a target. Raises BadOption where one would keep none."""
    kept = [len(site.numbers) - pruned(len(site.numbers), target) for site in sites]
    if emptied := [site.layer for site, count in zip(sites, kept, strict=True) if not count]:
        least = min(len(site.numbers) for site in sites)
        shown = ", ".join(emptied[:3]) + (f" and {len(emptied) - 3} more" if len(emptied) > 3 else "")
        works = int((least - 1) / least * 1000) / 1000
        raise BadOption(
            f"--target {target:g} leaves no channel of {shown}; at most --target {works:g} leaves one everywhere, or "
            "exempt layers with --keep-dense"
        )
    return kept


def _inputs_by_number(channels: Channels) -> dict[int, dict[int, list[int]]]:
    """Channel number -> place of a consumer in `channels.consumers` -> its inputs that carry it."""
    found: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, consumer in enumerate(channels.consumers):
        for i, number in enumerate(consumer.reads_I.tolist()):
            found[number][place].append(i)
    return found


def _site(
    traced: Traced,
    channels: Channels,
    name: str,
    writing: Mapping[int, int],
    reading: Mapping[int, Mapping[int, list[int]]],
) -> Site | str:
    """The site, or the reason why there is none.

    Args:
        traced: the network.
        channels: its channels.
        name: of the convolution.
        writing: channel number -> how many outputs of layers it has.
        reading: of `_inputs_by_number`.
    """
    module = traced.root.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    if name not in channels.owners:
        return "it is not followed"
    numbers = channels.owners[name]
    if module.groups == module.in_channels > 1:
        return "a depthwise convolution goes along with the layer that it filters"
    if any(writing[n] > 1 for n in numbers.tolist()):
        return ADDED
    if pinned := [channels.pinned[n] for n in numbers.tolist() if n in channels.pinned]:
        # Which of many grouped convolutions it meets would only make the list of reasons long.
        grouped = pinned[0].endswith("a grouped convolution")
        return "it meets a grouped convolution" if grouped else f"a channel of it {pinned[0]}"
    consumers = []
    for place in sorted({place for n in numbers.tolist() for place in reading.get(n, ())}):
        consumer = channels.consumers[place]
        inputs = [reading.get(n, {}).get(place, []) for n in numbers.tolist()]
        if len({len(carrying) for carrying in inputs}) > 1:
            return f"{consumer.name} reads some of its channels only"
        inputs_CP = torch.tensor(inputs)
        alone = inputs_CP.numel() == len(consumer.reads_I)
        consumers.append(Consumer(name=consumer.name, node=consumer.node, inputs_CP=inputs_CP, alone=alone))
    return Site(layer=name, numbers=numbers, consumers=tuple(consumers)) if consumers else "nothing reads it"
