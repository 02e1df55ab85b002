"""Inter-epoch pruning: splits the era into a phase of whole kernels and a phase of windows (paper, section 7.1).

Both phases lead to the counts that intra reaches with the same share: the kernels take what the windows' whole
numbers leave of the target, so the layer still ends at it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import Goal, pruned
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._cuts import kernels, windows
from starfire_cli.pruning.methods.intra import Intra
from starfire_cli.pruning.units import Budget

ORDERS = ("ck-window", "window-ck")


@METHODS.register("inter", "conv")
@dataclass(frozen=True, kw_only=True)
class Inter:
    """Prunes in two phases: first one kind of cut, then the other.

    Args:
        order: "ck-window" or "window-ck".
        split: where in the era's progress the second phase starts, in (0, 1).
        share: the part of the target that window pruning takes, in [0, 1].
        max_nonzero: at most this many weights stay in a 3 x 3 window once the era is over.
    """

    order: str = "ck-window"
    split: float = 0.5
    share: float = 0.5
    max_nonzero: int | None = None

    def __post_init__(self) -> None:
        self._intra()
        if self.order not in ORDERS:
            raise BadOption(f"order={self.order!r} is unknown; there are: {', '.join(ORDERS)}")
        if not 0 < self.split < 1:
            raise BadOption(f"split={self.split} is out of range; it lies between 0 and 1")

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        if layer.kind == "pointwise" or layer.depthwise:  # only one rule applies, so there is nothing to put in phases
            return self._intra().budget(layer, goal)
        final = self._intra().budget(layer, replace(goal, progress=1.0))
        assert final is not None
        early, late = min(1.0, goal.progress / self.split), max(0.0, (goal.progress - self.split) / (1 - self.split))
        of_windows, of_kernels = (late, early) if self.order == "ck-window" else (early, late)
        return windows(pruned(final[0].count, of_windows)), kernels(pruned(final[1].count, of_kernels))

    def _intra(self) -> Intra:
        return Intra(share=self.share, max_nonzero=self.max_nonzero)
