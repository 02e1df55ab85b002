"""The two rules for linear layers, single weights and tiles, and the guard: every output neuron keeps a weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from starfire_cli.pruning.budget import LinearBudget, prune_smallest
from starfire_cli.pruning.layers import Layer


def tiles_of(layer: Layer, tile: int) -> tuple[int, int]:
    """Rows and columns of `tile` x `tile` tiles; those at the ragged edges are smaller."""
    O, I = layer.shape
    return -(-O // tile), -(-I // tile)


def linear_mask(layer: Layer, weight_OI: Tensor, alive_OI: Tensor, budget: LinearBudget) -> Tensor:
    """Whole tiles first (score: sum |w|), then single weights of what is left, `budget.weights` gone in all.

    In each row of tiles the strongest tile stays, in each row of weights the strongest weight (paper, section 2.1.2:
    every output neuron is influenced by the input); the next smallest elsewhere goes in its place.
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
        tiled = (rows, n, columns, n)
        # Summed in float64, so that two tiles whose weights differ compare as they should.
        score_T = pad(score_OI.double(), edges).reshape(tiled).sum((1, 3))
        alive_T = pad(left_OI, edges).reshape(tiled).any(3).any(1)
        kept_T = _prune_but_strongest(score_T, alive_T, budget.tiles)
        left_OI = left_OI & kept_T.repeat_interleave(n, 0).repeat_interleave(n, 1)[:O, :I]
    if budget.weights:
        left_OI = _prune_but_strongest(score_OI, left_OI, budget.weights)
    return left_OI.clone(memory_format=torch.contiguous_format)


def _prune_but_strongest(score_RN: Tensor, alive_RN: Tensor, count: int) -> Tensor:
    """The `count` smallest of all go, but the strongest live one of each row (of equals the last) never does."""
    rows, n = score_RN.shape
    key_RN = torch.where(alive_RN, score_RN, -1.0)
    strongest_R1 = n - 1 - key_RN.flip(1).argmax(1, keepdim=True)
    guard_RN = torch.zeros_like(alive_RN).scatter_(1, strongest_R1, True) & alive_RN
    count = min(count, rows * n - int(guard_RN.sum()))
    guarded = torch.where(guard_RN, torch.inf, score_RN)
    return prune_smallest(guarded.reshape(1, -1), alive_RN.reshape(1, -1), count).reshape(rows, n)
