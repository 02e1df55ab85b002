"""Two-tier pruning: whole tiles for a share of the threshold, then single weights (paper, section 2.1.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import Goal, LinearBudget, pruned
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._linear_rules import LinearRules, tiles_of
from starfire_cli.pruning.methods.block import check_tile


@METHODS.register("two-tier", "linear")
@dataclass(frozen=True, kw_only=True)
class TwoTier(LinearRules):
    """Tiles go for a share of the threshold, then single weights until the layer reaches it.

    Args:
        n: the side of a tile, 1 to 4.
        share: the part of the threshold that the tiles take, in [0, 1].
    """

    n: int = 4
    share: float = 0.5

    def __post_init__(self) -> None:
        check_tile(self.n)
        if not 0 <= self.share <= 1:
            raise BadOption(f"share={self.share} is out of range; it is a part of the threshold, 0 to 1")

    def budget(self, layer: Layer, goal: Goal) -> LinearBudget | None:
        tiles = pruned(math.prod(tiles_of(layer, self.n)), self.share * goal.threshold)
        return LinearBudget(tiles=tiles, weights=pruned(layer.weights, goal.threshold), tile=self.n)
