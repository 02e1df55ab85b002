"""Block pruning: whole n x n tiles of the weight matrix go (paper, section 2.1.2, figure 2d)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import Goal, LinearBudget, pruned
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._linear_rules import LinearRules, tiles_of


@METHODS.register("block", "linear")
@dataclass(frozen=True, kw_only=True)
class Block(LinearRules):
    """The tiles with the smallest sum of |w| go; in every row of tiles one stays.

    Args:
        n: the side of a tile, 1 to 4 (the paper: n < 5); tiles at the ragged edges are smaller.
    """

    n: int = 4

    def __post_init__(self) -> None:
        check_tile(self.n)

    def budget(self, layer: Layer, goal: Goal) -> LinearBudget | None:
        return LinearBudget(tiles=pruned(math.prod(tiles_of(layer, self.n)), goal.threshold), weights=0, tile=self.n)


def check_tile(n: int) -> None:
    """Raises BadOption unless the paper knows tiles of that side."""
    if not 1 <= n <= 4:
        raise BadOption(f"n={n} is out of range; a tile's side is 1 to 4")
