"""Finds the convolutions whose output channels can go one by one, and the layers that read each of these channels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import pruned
from starfire_cli.pruning.channels.coupling import Channels
from starfire_cli.pruning.channels.graph import Traced

ADDED = "its outputs are added to others"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A layer that reads a site's channels: a convolution of one group, or a linear layer.

    Args:
        name: module name.
        node: where it is called.
        inputs_CP: the inputs that carry each channel, (C, P); behind a flattening these are its P pixels.
        alone: whether it reads nothing but these channels.
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
        readers: in the order of the graph, at least one.
    """

    layer: str
    numbers: Tensor
    readers: tuple[Reader, ...]


def find_sites(traced: Traced, channels: Channels, layers: Collection[str]) -> tuple[list[Site], list[tuple[str, str]]]:
    """The sites among `layers` in the order of the graph, and (layer, reason) of the other convolutions of `layers`."""
    sites, left = [], []
    order = [str(n.target) for n in traced.root.graph.nodes if traced.role(n) == "conv"]
    for name in (name for name in dict.fromkeys(order) if name in layers):
        found = _site(traced, channels, name)
        if isinstance(found, Site):
            sites.append(found)
        else:
            left.append((name, found))
    unseen = [x for x in layers if x not in order and isinstance(traced.root.get_submodule(x), nn.Conv2d)]
    return sites, [*left, *((x, "it is not followed") for x in unseen)]


def writers(traced: Traced, channels: Channels) -> dict[str, Tensor]:
    """The channel numbers that each layer's outputs bring in: of convolutions but depthwise ones, and linear layers."""
    modules = {name: traced.root.get_submodule(name) for name in channels.owners}
    return {
        name: channels.owners[name]
        for name, module in modules.items()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def kept_counts(sites: Sequence[Site], target: float) -> list[int]:
    """How many channels each site keeps of a target. Raises BadOption where one would keep none."""
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


def _site(traced: Traced, channels: Channels, name: str) -> Site | str:
    """The site, or the reason why there is none."""
    module = traced.root.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    if name not in channels.owners:
        return "it is not followed"
    numbers = channels.owners[name]
    if module.groups == module.in_channels > 1:
        return "a depthwise convolution goes along with the layer that it filters"
    others = [x for other, x in writers(traced, channels).items() if other != name]
    shared = bool(others) and bool(torch.isin(numbers, torch.cat(others)).any())
    if shared or len(set(numbers.tolist())) < len(numbers):
        return ADDED
    if pinned := [channels.pinned[n] for n in numbers.tolist() if n in channels.pinned]:
        # Which of many grouped convolutions it meets would only make the list of reasons long.
        grouped = pinned[0].endswith("a grouped convolution")
        return "it meets a grouped convolution" if grouped else f"a channel of it {pinned[0]}"
    readers = []
    for reader in channels.readers:
        inputs = [(reader.reads_I == n).nonzero().flatten() for n in numbers]
        counts = {len(places) for places in inputs}
        if counts == {0}:
            continue
        if len(counts) > 1:
            return f"{reader.name} reads some of its channels only"
        inputs_CP = torch.stack(inputs)
        alone = inputs_CP.numel() == len(reader.reads_I)
        readers.append(Reader(name=reader.name, node=reader.node, inputs_CP=inputs_CP, alone=alone))
    return Site(layer=name, numbers=numbers, readers=tuple(readers)) if readers else "nothing reads it"
