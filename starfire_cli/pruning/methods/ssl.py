"""Structured sparsity learning, SSL (Wen et al., 2016, arXiv 1608.03665)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes
from starfire_cli.pruning.lasso import CHANNEL, FILTER, Lasso
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice, check_not_negative

UNITS = {"filter": FILTER, "channel": CHANNEL, "shape": "K", "depth": "KCRS"}


@METHODS.register("ssl", "network")
@dataclass(frozen=True, kw_only=True)
class StructuredSparsityLearning:
    """Group lasso on one kind of unit; groups that are zero when the era ends are dead for good, and the rest is
    fine-tuned without the penalty.

    Weights smaller than `zero` are set to zero after every step and may come back until then. There is no target. The
    paper starts from a trained network, with a tenth of its learning rate: `--init`, `--lr`. Published: AlexNet's
    convolutions 5.1 times as fast on a CPU; ResNet-20 on CIFAR-10 with 18 layers left 91.25 to 92.60 %.

    Args:
        unit: "filter", "channel" (inputs), "shape" (columns of the im2col matrix), or "depth" (whole layers, of
            residual branches, which the network can do without).
        strength: what the sum of norms is multiplied with; the authors' example for CIFAR-10 has 0.003.
        zero: the size below which a weight is set to zero.
    """

    unit: str = "filter"
    strength: float = 0.003
    zero: float = 1e-4

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, UNITS)
        check_not_negative("strength", self.strength)
        check_not_negative("zero", self.zero)

    def axes(self) -> Axes:
        depth = self.unit == "depth"
        lasso = Lasso(
            units=(UNITS[self.unit],),
            strength=self.strength,
            zero_below=self.zero,
            removable=self.unit in ("filter", "channel"),
            in_branches=depth,
        )
        return Axes(penalty=lasso, span=(0.0, 0.7), targeted=False)
