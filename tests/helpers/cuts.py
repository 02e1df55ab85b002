"""Budgets of the patterns that have fast kernels, from plain counts."""

from __future__ import annotations

from starfire_cli.pruning import Budget, Cut


def conv_cuts(in_window: int, kernels: int) -> Budget:
    """So many weights of every window, then so many kernels of every input channel."""
    return Cut("", "KC", in_window), Cut("RS", "C", kernels)


def linear_cuts(tiles: int, weights: int, tile: int) -> Budget:
    """So many tiles, then single weights up to so many in all; the usual form of each where the other is 0."""
    of_tiles = Cut("", "", tiles, reduce="sum", keep="K", tile=tile)
    of_weights = Cut("", "", weights, keep="K")
    if tile == 1 and not tiles:
        return (of_weights,)
    return (of_tiles, of_weights) if weights else (of_tiles,)
