"""Samples of what the layers that consume a site's channels see of images, and of what they should make of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from starfire_cli.errors import BadOption
from starfire_cli.pruning.channels.graph import Traced
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.channels.selection.sampling import (
    Seen,
    draw_places,
    generator,
    inputs_at,
    outputs_at,
    run_until,
)
from starfire_cli.pruning.channels.selection.sites import Consumer, Site

_DULL = 1e-3  # of the largest scale of a BatchNorm: below it, a channel cannot make up for anything
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True, kw_only=True)
class ConsumerSamples:
    """Samples of one consumer of a site, at M places of images; T are the taps of its window, or the pixels of a map.

    Args:
        consumer: the layer.
        x_MCT: its inputs that are the site's channels, as the network is now, on the CPU.
        weight_KCT: its weights on them.
        wanted_MK: what these channels should add to its outputs, so that they become the original network's; None
            where that was not asked for.
    """

    consumer: Consumer
    x_MCT: Tensor
    weight_KCT: Tensor
    wanted_MK: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Junction:
    """The sum that a layer's outputs enter, perhaps through a BatchNorm.

    Args:
        node: the addition.
        other: which of its two arguments is the other one.
        norm: the BatchNorm's module name.
    """

    node: fx.Node
    other: int
    norm: str | None


@dataclass(kw_only=True)
class _Sample:
    """Samples of one layer on a batch: inputs (M, I, T), outputs (M, K) without its bias, the other summand (M, K)."""

    x: Tensor = field(default_factory=lambda: torch.empty(0))
    y: Tensor = field(default_factory=lambda: torch.empty(0))
    shortcut: Tensor | None = None


@torch.no_grad()
def sample_consumers(network: EditedNetwork, site: Site, *, places: int, wanted: bool = False) -> list[ConsumerSamples]:
    """Samples of what the consumers of a site see.

    Args:
        network: with images.
        site: whose channels.
        places: at most so many of an image, by chance.
        wanted: whether to run the original network beside it for what the consumers should give. One that ends a branch
            should also make up for what the other summand lost.
    """
    junctions = {consumer.name: find_junction(network.traced, consumer.node) for consumer in site.consumers if wanted}
    own = {r.name: _of_channels(_taps(network.weight(r.name)), r.inputs_CP) for r in site.consumers}
    inputs: dict[str, list[Tensor]] = {consumer.name: [] for consumer in site.consumers}
    goals: dict[str, list[Tensor]] = {consumer.name: [] for consumer in site.consumers}
    for number, images in enumerate(network.batches):
        taken = {r.name: _draw(network, r, len(images), places, number) for r in site.consumers}
        now = _samples(network, network.model, images, site, taken, junctions)
        before = now
        if wanted:
            assert network.original is not None
            before = _samples(network, network.original, images, site, taken, junctions)
        for consumer in site.consumers:
            name, seen, was = consumer.name, now[consumer.name], before[consumer.name]
            x_MCT = _of_channels(seen.x, consumer.inputs_CP)
            inputs[name].append(x_MCT.cpu())
            goal = was.y
            junction = junctions.get(name)
            if junction is not None and seen.shortcut is not None and was.shortcut is not None:
                goal = goal + (was.shortcut - seen.shortcut) * _before_norm(network.model, junction)
            if not consumer.alone:  # what the other channels give is not these channels' to mend
                goal = goal - (seen.y - torch.einsum("mct,kct->mk", x_MCT, own[name]))
            goals[name].append(goal.cpu())
    return [
        ConsumerSamples(
            consumer=consumer,
            x_MCT=torch.cat(inputs[consumer.name]),
            weight_KCT=own[consumer.name].cpu(),
            wanted_MK=torch.cat(goals[consumer.name]) if wanted else None,
        )
        for consumer in site.consumers
    ]


def check_samples(network: EditedNetwork, site: Site, consumer: Consumer, *, places: int, needed: int) -> None:
    """Raises BadOption where a fit has more unknowns than there are samples of a consumer.

    Args:
        network: with images.
        site: whose channels it reads.
        consumer: the layer.
        places: at most so many of an image.
        needed: the number of unknowns.
    """
    images, each = sum(map(len, network.batches)), min(places, network.places(consumer.node))
    if images * each < needed:
        raise BadOption(
            f"--calibrate {images} gives {images * each} samples of {consumer.name}, and {needed} unknowns are fitted "
            f"to them; at least --calibrate {-(-needed // each)}, or exempt {site.layer} with --keep-dense"
        )


def responses(network: EditedNetwork, sites: Sequence[Site], pool: str) -> list[Tensor]:
    """The inputs of the first consumer of each site by image and channel, (N, C), pooled over the map.

    Args:
        network: with images.
        sites: whose channels.
        pool: "max" or "mean".
    """
    found: list[list[Tensor]] = [[] for _ in sites]
    for images in network.batches:
        watched: list[tuple[fx.Node, Seen]] = [
            (site.consumers[0].node, partial(_pool, site, pool, parts))
            for site, parts in zip(sites, found, strict=True)
        ]
        run_until(network.model, network.traced.root.graph, images.to(network.device), watched)
    return [torch.cat(parts) for parts in found]


def find_junction(traced: Traced, node: fx.Node) -> Junction | None:
    """The sum that a layer's outputs enter; None where they go elsewhere, too, or through something else first."""
    norm, current = None, node
    while len(current.users) == 1:
        (user,) = current.users
        if traced.role(user) == "batchnorm" and norm is None:
            norm, current = str(user.target), user
            continue
        terms = [a for a in user.args if isinstance(a, fx.Node)]
        if traced.role(user) == "add" and user.target in _ADDITIONS and len(terms) == len(user.args) == 2:
            return Junction(node=user, other=1 - terms.index(current), norm=norm) if not user.kwargs else None
        return None
    return None


def _samples(
    network: EditedNetwork,
    model: nn.Module,
    images: Tensor,
    site: Site,
    taken: dict[str, Tensor],
    junctions: dict[str, Junction | None],
) -> dict[str, _Sample]:
    """The consumers' samples on one batch, by name, at the places `taken`."""
    samples = {consumer.name: _Sample() for consumer in site.consumers}
    watched: list[tuple[fx.Node, Seen]] = []
    for consumer in site.consumers:
        layer, sample, places = model.get_submodule(consumer.name), samples[consumer.name], taken[consumer.name]
        watched.append(
            (consumer.node, partial(_see_layer, layer, sample, places, network.found.shapes[consumer.node][-1]))
        )
        if (junction := junctions.get(consumer.name)) is not None:
            watched.append((junction.node, partial(_see_sum, sample, places, junction.other)))
    run_until(model, network.traced.root.graph, images.to(network.device), watched)
    return samples


def _see_layer(
    layer: nn.Module, sample: _Sample, places_NP: Tensor, width: int, args: tuple[Any, ...]
) -> Callable[[Any], None]:
    sample.x = inputs_at(layer, args[0], places_NP, width)

    def after(result: Any) -> None:
        y = outputs_at(result, places_NP)
        sample.y = y - layer.bias if isinstance(layer.bias, Tensor) else y

    return after


def _see_sum(sample: _Sample, places_NP: Tensor, other: int, args: tuple[Any, ...]) -> None:
    sample.shortcut = outputs_at(args[other], places_NP)


def _pool(site: Site, pool: str, parts: list[Tensor], args: tuple[Any, ...]) -> None:
    seen = args[0].flatten(2) if args[0].ndim == 4 else args[0][:, :, None]
    seen_NC = seen[:, site.consumers[0].inputs_CP.to(seen.device)].flatten(2)
    parts.append((seen_NC.amax(2) if pool == "max" else seen_NC.mean(2)).cpu())


def _draw(network: EditedNetwork, consumer: Consumer, images: int, each: int, batch: int) -> Tensor:
    """The places of a consumer's output where a batch is looked at, the same ones whenever it is asked for."""
    draws = generator(network.seed, consumer.name, batch)
    return draw_places(images, network.places(consumer.node), each, draws)


def _taps(weight: Tensor) -> Tensor:
    return weight.flatten(2) if weight.ndim == 4 else weight[:, :, None]


def _of_channels(x: Tensor, inputs_CP: Tensor) -> Tensor:
    """The part of (..., I, T) that is a site's channels: (..., C, P * T)."""
    return x[..., inputs_CP.to(x.device), :].flatten(-2)


def _before_norm(model: nn.Module, junction: Junction) -> Tensor | float:
    """The factor from the sum back to the outputs of the layer, (K,); 0 where BatchNorm lets nothing through."""
    if junction.norm is None:
        return 1.0
    norm = model.get_submodule(junction.norm)
    assert isinstance(norm, _BatchNorm) and isinstance(norm.running_var, Tensor)
    scale_K = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight.detach())
    return torch.where(scale_K.abs() > _DULL * scale_K.abs().max(), 1 / scale_K, 0.0)
