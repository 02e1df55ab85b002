"""Two-tier pruning: prunes whole tiles for a share of the threshold, then single weights (paper, section 2.1.2)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._cuts import check_share, check_tile, tile_cut, weight_cut
from starfire_cli.pruning.units import Budget


@METHODS.register("two-tier", "linear")
@dataclass(frozen=True, kw_only=True)
class TwoTier:
    """Prunes tiles for a share of the threshold, then single weights until the layer reaches it.

    Args:
        n: the side of a tile, 1 to 4.
        share: the part of the threshold that the tiles take, in [0, 1].
    """

    n: int = 4
    share: float = 0.5

    def __post_init__(self) -> None:
        check_tile(self.n)
        check_share(self.share)

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        return tile_cut(layer, self.share * goal.threshold, self.n), weight_cut(layer, goal.threshold)
