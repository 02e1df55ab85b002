"""Scales of BatchNorm as scores of channels, over all layers of a network (network slimming)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import pruned
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.channels.selection.sites import ADDED


def choose_gone(network: EditedNetwork, target: float) -> Tensor:
    """The channel numbers that go: the smallest |gamma| first, of equals the earlier channel.

    A channel that would leave a layer empty is passed over.

    Raises BadOption where no BatchNorm scales a channel that can go, or `target` would leave a layer empty.
    """
    scores = _scores(network)
    if not scores:
        raise BadOption("channels are ranked by the scales of BatchNorm, and no channel that can go has one")
    wanted = pruned(len(scores), target)
    owners = list(network.channels.owners.values())
    layers_of: dict[int, list[int]] = {}
    left = [len(set(numbers.tolist())) for numbers in owners]
    for layer, numbers in enumerate(owners):
        for number in set(numbers.tolist()):
            layers_of.setdefault(number, []).append(layer)
    gone: list[int] = []
    for number in sorted(scores, key=lambda n: (scores[n], n)):
        if len(gone) < wanted and all(left[layer] > 1 for layer in layers_of[number]):
            gone.append(number)
            for layer in layers_of[number]:
                left[layer] -= 1
    if len(gone) < wanted:
        raise BadOption(
            f"--target {target:g} leaves no channel of some layer; at most --target "
            f"{int(len(gone) / len(scores) * 1000) / 1000:g} leaves one everywhere, or exempt layers with --keep-dense"
        )
    network.left = [(name, why) for name, why in network.left if why != ADDED or name not in _touched(network, scores)]
    return torch.tensor(gone, dtype=torch.long)


def _scores(network: EditedNetwork) -> dict[int, float]:
    """The largest |gamma| of each channel number that can go."""
    fixed = set(network.channels.pinned)
    scored: dict[int, float] = {}
    written: set[int] = set()
    for name, numbers in network.channels.owners.items():
        module = network.model.get_submodule(name)
        if isinstance(module, _BatchNorm):
            gammas = [torch.inf] * len(numbers) if module.weight is None else module.weight.detach().abs().tolist()
            for number, gamma in zip(numbers.tolist(), gammas, strict=True):
                scored[number] = max(scored.get(number, 0.0), gamma)
        elif isinstance(module, nn.Conv2d):
            written.update(numbers.tolist())
            if name not in network.layers and module.groups == 1:
                fixed.update(numbers.tolist())
        else:
            fixed.update(numbers.tolist())
    return {n: s for n, s in scored.items() if n in written and n not in fixed and s < torch.inf}


def _touched(network: EditedNetwork, scores: dict[int, float]) -> set[str]:
    return {name for name, numbers in network.channels.owners.items() if not scores.keys().isdisjoint(numbers.tolist())}
