"""Block pruning: prunes whole n x n tiles of the weight matrix (paper, section 2.1.2, figure 2d)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._cuts import check_tile, tile_cut
from starfire_cli.pruning.units import Budget


@METHODS.register("block", "linear")
@dataclass(frozen=True, kw_only=True)
class Block:
    """Prunes the tiles with the smallest sum of |w|; one of each row of tiles stays.

    Args:
        n: the side of a tile, 1 to 4 (the paper: n < 5); tiles at the ragged edges are smaller.
    """

    n: int = 4

    def __post_init__(self) -> None:
        check_tile(self.n)

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        return (tile_cut(layer, goal.threshold, self.n),)
