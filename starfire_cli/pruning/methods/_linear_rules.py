"""The two rules for linear layers, single weights and tiles, and the guard: every output neuron keeps a weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from starfire_cli.pruning.budget import LinearBudget, prune_smallest
from starfire_cli.pruning.layers import Layer


class LinearRules:
    """A method whose masks follow the rules of this file (`methods.ByRules`); it says how many, they say which."""

    def seen(self, layer: Layer) -> Layer:
        return layer

    def mask(self, layer: Layer, weight_OI: Tensor, alive_OI: Tensor, budget: LinearBudget) -> Tensor:
        return linear_mask(self.seen(layer), weight_OI, alive_OI, budget)


def tiles_of(layer: Layer, tile: int) -> tuple[int, int]:
    """Rows and columns of `tile` x `tile` tiles; those at the ragged edges are smaller."""
    O, I = layer.shape
    return -(-O // tile), -(-I // tile)


def linear_mask(layer: Layer, weight_OI: Tensor, alive_OI: Tensor, budget: LinearBudget) -> Tensor:
    """Whole tiles first (score: sum |w|), then single weights of what is left, `budget.weights` gone in all.

    Every output neuron keeps its strongest weight, and of the tiles that hold weights of it the strongest (paper,
    section 2.1.2: every output neuron is influenced by the input); the next smallest elsewhere goes in its place.
    Returns what is left, bool, (O, I).
    """
    O, I = layer.shape
    score_OI = weight_OI.detach().abs().to(torch.float64 if weight_OI.dtype == torch.float64 else torch.float32)
    score_OI = torch.where(alive_OI, score_OI, torch.zeros_like(score_OI))
    left_OI = alive_OI
    if budget.tiles:
        n = budget.tile
        rows, columns = tiles_of(layer, n)
        edges = (0, columns * n - I, 0, rows * n - O)
        # Summed in float64, so that two tiles whose weights differ compare as they should.
        score_T = pad(score_OI.double(), edges).reshape(rows, n, columns, n).sum((1, 3))
        alive_NT = pad(left_OI, edges).reshape(rows * n, columns, n).any(-1)  # by neuron and tile
        guard_NT = _strongest(score_T.repeat_interleave(n, 0), alive_NT)
        alive_T, guard_T = (x.reshape(rows, n, columns).any(1) for x in (alive_NT, guard_NT))
        kept_T = _prune_but(guard_T, score_T, alive_T, budget.tiles)
        left_OI = left_OI & kept_T.repeat_interleave(n, 0).repeat_interleave(n, 1)[:O, :I]
    if budget.weights:
        left_OI = _prune_but(_strongest(score_OI, left_OI), score_OI, left_OI, budget.weights)
    return left_OI.clone(memory_format=torch.contiguous_format)


def _strongest(score_RN: Tensor, alive_RN: Tensor) -> Tensor:
    """The live one of the highest score in each row, of equals the last; none in a row that is dead. Bool, (R, N)."""
    key_RN = torch.where(alive_RN, score_RN, -1.0)
    last_R1 = score_RN.shape[1] - 1 - key_RN.flip(1).argmax(1, keepdim=True)
    return torch.zeros_like(alive_RN).scatter_(1, last_R1, True) & alive_RN


def _prune_but(guard_RN: Tensor, score_RN: Tensor, alive_RN: Tensor, count: int) -> Tensor:
    """The `count` smallest of all rows together go, but never what `guard_RN` holds."""
    count = min(count, guard_RN.numel() - int(guard_RN.sum()))
    guarded = torch.where(guard_RN, torch.inf, score_RN)
    return prune_smallest(guarded.reshape(1, -1), alive_RN.reshape(1, -1), count).reshape(guard_RN.shape)
