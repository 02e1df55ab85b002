"""Removes dead channels from a network that is being trained, its optimizer state and its moving average included.

A network and its moving average are one architecture with two sets of values. Both are cut by one recipe: what can go
of the one and not of the other stays. Each takes over the constants that its own channels carried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.channels.constants import check_masks, find_constants, settle_statistics
from starfire_cli.pruning.channels.coupling import find_channels
from starfire_cli.pruning.channels.equality import ALLOWED, largest_difference, outputs_on_noise
from starfire_cli.pruning.channels.graph import fitting_image, trace
from starfire_cli.pruning.channels.recipe import ShrinkRecipe, tensor_cuts
from starfire_cli.pruning.channels.removable import Gains, Removable
from starfire_cli.pruning.channels.shrink import rebuild
from starfire_cli.pruning.ties import masks_everywhere, parameters_of


@dataclass(frozen=True, kw_only=True)
class ChannelRemoval:
    """A removal of channels that works for a network and for the others of its architecture.

    Args:
        recipe: the channels that stay, of all the networks; empty if nothing can go.
        gains: of each network, the constants that its layers take over.
        difference: largest difference of any network's outputs on random images, over its largest output, in float64.
    """

    recipe: ShrinkRecipe
    gains: tuple[Gains, ...]
    difference: float


@torch.no_grad()
def settle_norms(net: nn.Module, masks: Mapping[str, Tensor], *, example: Tensor) -> None:
    """Give BatchNorm channels that read a constant the statistics of that constant, in place.

    While weights die, running means still tell of the time before, so that eval mode and training differ in what such a
    channel gives. From now on it is beta in both.

    Raises StarfireError where torch.fx cannot trace the network.
    """
    traced = trace(net)
    dtype = next((t.dtype for t in net.parameters() if t.is_floating_point()), torch.float32)
    found = find_constants(traced, masks_everywhere(net, masks), fitting_image(traced, example), settle=dtype)
    for name, value_C in found.norms.items():
        if traced.once(name):
            settle_statistics(net.get_submodule(name), value_C)


@torch.no_grad()
def plan_removal(nets: Sequence[nn.Module], masks: Mapping[str, Tensor], *, example: Tensor) -> ChannelRemoval:
    """Find the channels that can be removed from all the networks without a change of any one's outputs in eval mode.

    Args:
        nets: networks of one architecture, in which the masked weights are zero; not changed.
        masks: what is dead, by state-dict key; a layer without a mask is alive.
        example: an image or batch that they take, (N, C, H, W); its values do not matter.

    Raises:
        Mismatch: a dead weight is not zero.
        StarfireError: a mask has no weight, the network cannot be traced, or, which would be a bug, outputs differ.
    """
    traces, found, channels = [], [], []
    for net in nets:
        check_masks(net, masks)
        traces.append(trace(net))
        found.append(find_constants(traces[-1], masks_everywhere(net, masks), fitting_image(traces[-1], example)))
        channels.append(find_channels(traces[-1], found[-1]))
    assert len({c.count for c in channels}) == 1, "networks of several architectures"
    keep: dict[int, str] = {}
    while True:
        all_of = [
            Removable(t, masks_everywhere(net, masks), f, c, keep)
            for net, t, f, c in zip(nets, traces, found, channels, strict=True)
        ]
        gone = torch.stack([removable.gone for removable in all_of]).all(0)
        if all(torch.equal(removable.gone, gone) for removable in all_of):
            break
        keep = dict.fromkeys((~gone).nonzero().flatten().tolist(), "stays in another network of this architecture")
    gains = tuple(removable.gains() for removable in all_of)
    recipe = all_of[0].recipe({name: gain for each in gains for name, gain in each.items()})
    difference = 0.0
    if recipe:
        for traced, gain in zip(traces, gains, strict=True):
            image = fitting_image(traced, example)
            before = outputs_on_noise(traced.model, image)
            rebuild(traced.model, recipe, gain)
            difference = max(difference, largest_difference(before, outputs_on_noise(traced.model, image)))
    if not difference <= ALLOWED:
        raise StarfireError(f"the smaller network's outputs differ by {difference:.1e} of the largest; nothing was cut")
    return ChannelRemoval(recipe=recipe, gains=gains, difference=difference)


@torch.no_grad()
def remove(
    nets: Sequence[nn.Module], removal: ChannelRemoval, optimizer: torch.optim.Optimizer | None = None
) -> dict[nn.Parameter, nn.Parameter]:
    """Cut the networks in place as planned, and the optimizer of the first along with it.

    What stays keeps its values, its optimizer state and, in four dimensions, plain strides: convert the networks again
    where they had others, then call `align_state`. Gradients are dropped.

    Args:
        nets: as given to `plan_removal`.
        removal: what that found.
        optimizer: over parameters of the first network.

    Returns each parameter of the first network that was replaced -> what replaced it.
    """
    net = nets[0]
    cuts = _cuts_of_parameters(net, removal.recipe)
    before = parameters_of(net)
    for each, gains in zip(nets, removal.gains, strict=True):
        rebuild(each, removal.recipe, gains)
        for parameter in each.parameters():
            parameter.data = _plain(parameter.data)
    after = parameters_of(net)
    swapped = {old: after[key] for key, old in before.items() if after[key] is not old}
    if optimizer is not None:
        for key, old in before.items():
            if old in swapped and old in optimizer.state:
                state = optimizer.state.pop(old)
                optimizer.state[swapped[old]] = {
                    name: _cut(value, cuts[key]) if isinstance(value, Tensor) and value.shape == old.shape else value
                    for name, value in state.items()
                }
        _renew_groups(optimizer, net, swapped, new={after[key] for key in after.keys() - before.keys()})
    return swapped


def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the strides of the parameters it goes with."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _renew_groups(
    optimizer: torch.optim.Optimizer,
    net: nn.Module,
    swapped: Mapping[nn.Parameter, nn.Parameter],
    new: set[nn.Parameter],
) -> None:
    """Put the new parameters where the old ones were, in the order in which the network has them; new biases go to the
    last group, which is that of biases where these have their own.
    """
    member = {swapped.get(p, p): number for number, g in enumerate(optimizer.param_groups) for p in g["params"]}
    member |= dict.fromkeys(new, len(optimizer.param_groups) - 1)
    order = dict.fromkeys([*net.parameters(), *member])
    for number, group in enumerate(optimizer.param_groups):
        group["params"] = [p for p in order if member.get(p) == number]


def _cuts_of_parameters(net: nn.Module, recipe: ShrinkRecipe) -> dict[str, list[tuple[int, list[int]]]]:
    """Key of each parameter -> the axes along which it is cut, and the indices that stay."""
    cuts: dict[str, list[tuple[int, list[int]]]] = {}
    for name, cut in recipe.items():
        for tensor, axis, kept in tensor_cuts(net.get_submodule(name), cut):
            cuts.setdefault(f"{name}.{tensor}".lstrip("."), []).append((axis, kept))
    return cuts


def _cut(tensor: Tensor, cuts: Sequence[tuple[int, list[int]]]) -> Tensor:
    for axis, kept in cuts:
        tensor = tensor.index_select(axis, torch.tensor(kept, device=tensor.device))
    return _plain(tensor)


def _plain(tensor: Tensor) -> Tensor:
    """The tensor with the strides of a fresh one."""
    fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor if tensor.stride() == fresh.stride() else fresh.copy_(tensor)
