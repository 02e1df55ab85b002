"""The axes of sparse training methods as options, for methods that have no name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from starfire_cli.errors import BadOption
from starfire_cli.pruning.allocation import ALLOCATIONS
from starfire_cli.pruning.axes import Axes, Rewire, SparseStart, Stage
from starfire_cli.pruning.layer_units import REDUCTIONS, Unit
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice, check_every, check_fraction, check_ramp
from starfire_cli.pruning.regrowth import SHARINGS, Grow
from starfire_cli.pruning.removal import Adaptive, Removal, Rise, Swap
from starfire_cli.pruning.scores import SCORES

UNITS = {"weight": "", "kernel": "RS", "filter": "CRS", "row": "S", "column": "K", "channel": "KRS"}
STARTS = ("dense", "random", *(name for name in SCORES if name != "momentum"))  # of which there is none at first
REGROWTHS = ("none", "random", "gradient", "momentum")  # whatever else is a score is 0 of all that is dead
AMOUNTS = ("none", "rise", "swap", "adaptive")


@METHODS.register("mix", "network", "oneshot")
@dataclass(frozen=True, kw_only=True)
class Mix:
    """Any combination of the axes; gmp is `mix:ramp=cubic`, rigl is `mix:start=random,allocation=erk,amount=swap,...`.

    Args:
        unit: what lives and dies as one: weight, kernel, row (of a window), column (im2col), filter, channel (inputs).
        reduce: a unit's score from those of its weights: mean, max, sum or norm.
        start: dense, or sparse from the first step on: random, or by the highest of a score other than momentum.
        allocation: uniform, erk, er, or global (one competition; where a score decides).
        score: what the weakest are pruned by: magnitude, sensitivity, standardised, ...
        amount: rise (to the target in the era), swap (a fraction, regrown), adaptive (a threshold), or none.
        fraction: of the live units that a swap takes, or that an adaptive threshold aims at.
        anneal: of a swap's fraction: cosine (to 0) or constant.
        by_sign: a swap takes positive and negative weights each by itself.
        regrow: none, random, gradient or momentum.
        shared: who regrows: layer (its own losses), or all together by live (weights) or momentum.
        again: whether what has just gone may come back; if not, it does only where there are too few other places.
        keeps_value: whether it then keeps its value.
        ramp: linear, cubic or cosine.
        every: steps between evaluations; default 100, or a twentieth of the era where that is less.
        replaces_step: whether an evaluation takes the place of the optimizer's step.
        first: the era's beginning as a share of the training, where `last` is given.
        last: the era's end; by default the era is the recipe's.
        dense_first: whether the first convolution stays dense.
    """

    of_training: ClassVar[tuple[str, ...]] = ("ramp", "every", "first", "last")

    unit: str = "weight"
    reduce: str = "mean"
    start: str = "dense"
    allocation: str = "uniform"
    score: str = "magnitude"
    amount: str = "rise"
    fraction: float = 0.3
    anneal: str = "cosine"
    by_sign: bool = False
    regrow: str = "none"
    shared: str = "layer"
    again: bool = True
    keeps_value: bool = False
    ramp: str = "linear"
    every: int | None = None
    replaces_step: bool = False
    first: float = 0.0
    last: float | None = None
    dense_first: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("unit", self.unit, UNITS),
            ("reduce", self.reduce, REDUCTIONS),
            ("start", self.start, STARTS),
            ("allocation", self.allocation, ALLOCATIONS),
            ("score", self.score, SCORES),
            ("amount", self.amount, AMOUNTS),
            ("anneal", self.anneal, ("cosine", "constant")),
            ("regrow", self.regrow, REGROWTHS),
            ("shared", self.shared, SHARINGS),
        ):
            check_choice(name, value, known)
        check_ramp(self.ramp)
        check_every(self.every)
        check_fraction("fraction", self.fraction)
        check_fraction("first", self.first)
        if self.last is not None and not self.first < self.last <= 1:
            raise BadOption(f"last={self.last:g} is out of range; it lies above first={self.first:g} and is at most 1")
        self._check_combination()

    def axes(self) -> Axes:
        allocation = "uniform" if self.allocation == "global" and self.start == "random" else self.allocation
        return Axes(
            unit=Unit(axes=UNITS[self.unit], reduce=REDUCTIONS[self.reduce]),
            start=None if self.start == "dense" else SparseStart(allocation=allocation, score=self.start),
            stages=self._stages(),
            every=self.every,
            ramp=self.ramp,
            replaces_step=self.replaces_step,
            span=None if self.last is None else (self.first, self.last),
            dense_first=self.dense_first,
        )

    def _stages(self) -> tuple[Stage, ...]:
        if self.amount == "none":
            return ()
        removals: dict[str, Removal] = {
            "rise": Rise(allocation=self.allocation, score=self.score),
            "swap": Swap(fraction=self.fraction, anneal=self.anneal, by_sign=self.by_sign, score=self.score),
            "adaptive": Adaptive(wanted=max(self.fraction, 1e-9)),
        }
        grow = Grow(by=self.regrow, shared=self.shared, again=self.again, keeps_value=self.keeps_value)
        return (Rewire(removal=removals[self.amount], regrowth=None if self.regrow == "none" else grow),)

    def _check_combination(self) -> None:
        """Raises BadOption for options that contradict each other."""
        if self.amount in ("swap", "adaptive") and self.regrow == "none":
            raise BadOption(
                f"amount={self.amount} takes weights away for others; regrow=random or gradient gives those"
            )
        if self.amount in ("swap", "adaptive", "none") and self.start == "dense":
            raise BadOption(
                f"amount={self.amount} with start=dense never reaches the target; start=random begins at it"
            )
        if self.amount in ("rise", "none") and self.regrow != "none":
            raise BadOption(f"regrow={self.regrow} belongs to amount=swap or adaptive, not to amount={self.amount}")
        if self.by_sign and (self.unit != "weight" or self.amount != "swap"):
            raise BadOption("by_sign=true is for amount=swap of unit=weight")
