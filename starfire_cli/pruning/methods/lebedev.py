"""Group-wise brain damage (Lebedev and Lempitsky, 2016, arXiv 1506.02515)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from starfire_cli.pruning.axes import Axes, Rewire
from starfire_cli.pruning.lasso import COLUMN, Lasso
from starfire_cli.pruning.layer_units import Unit
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_every, check_not_negative, check_ramp
from starfire_cli.pruning.removal import Rise


@METHODS.register("lebedev", "network", "oneshot")
@dataclass(frozen=True, kw_only=True)
class GroupWiseBrainDamage:
    """Whole columns of each layer's im2col matrix go by their norm, under a group lasso on the columns that acts in the
    era; fine-tuning without it follows.

    A column is one place (c, r, s) of all filters: without it, the matrix product has one inner dimension less. The
    gradual variant of the paper: the quantile that is zeroed grows to the target. It starts from a trained network
    (`--init`). With target 0 there is no era, and no penalty either. (Table 4 of Parashar et al. calls it
    non-structured, which it is not.)

    Args:
        strength: what the sum of the columns' norms is multiplied with.
        ramp: of the quantile: "linear", "cubic" or "cosine".
        every: steps between evaluations; default 100, or a twentieth of the era where that is less.
    """

    of_training: ClassVar[tuple[str, ...]] = ("strength", "ramp", "every")

    strength: float = 1e-3
    ramp: str = "linear"
    every: int | None = None

    def __post_init__(self) -> None:
        check_not_negative("strength", self.strength)
        check_ramp(self.ramp)
        check_every(self.every)

    def axes(self) -> Axes:
        return Axes(
            unit=Unit(axes=COLUMN, reduce="norm"),
            stages=(Rewire(removal=Rise()),),
            penalty=Lasso(units=(COLUMN,), strength=self.strength),
            every=self.every,
            ramp=self.ramp,
            dense_last=True,
            dense_depthwise=True,
        )
