"""Dynamic sparse reparameterization (Mostafa and Wang, 2019, arXiv 1902.05967)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.errors import BadOption
from starfire_cli.numbers import parse_number
from starfire_cli.pruning.axes import Axes, Rewire, SparseStart
from starfire_cli.pruning.layer_units import Unit
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice, check_every, check_positive
from starfire_cli.pruning.regrowth import Grow
from starfire_cli.pruning.removal import Adaptive


@METHODS.register("dsr", "network")
@dataclass(frozen=True, kw_only=True)
class DynamicSparseReparameterization:
    """Units under one threshold for the whole network go, and as many come back at random, in layers by what they have.

    The first convolution stays dense; the authors keep those of ResNets' shortcuts dense as well (`--keep-dense` does),
    and WRN's linear layer. Kernels of one size are regrown among layers
    with kernels of that size, so that the live weights stay as many. There is no penalty (the paper's Table 4 says
    otherwise). Published: ResNet50 on ImageNet at 80/90 %: 73.3/71.6, kernels at 80 %: 72.6; WRN-28-2 on CIFAR-10 at
    50/70/90 %: 94.73/94.57/93.59.

    Args:
        unit: "weight", or "kernel", scored by its mean |w|.
        moves: units that should move each time, in all layers; below 1, a share of the live ones (the paper: 400,000 of
            ResNet50's 5.1 million, 20,000 of WRN-28-2's).
        threshold: the first; it is halved or doubled so that `moves` is met within 10 %, and kept in checkpoints.
        every: steps between evaluations; default 100, or a twentieth of the era where that is less.
        doubled_at: shares of the era after which `every` doubles. The paper: every=1000,doubled_at=0.263/0.526/0.789
            for ResNet50 (epochs 25, 50 and 75 of 95), every=100,doubled_at=0.132/0.421/0.737 for WRN-28-2 (epochs 25,
            80 and 140 of 190).
    """

    unit: str = "weight"
    moves: float = 0.08
    threshold: float = 1e-3
    every: int | None = None
    doubled_at: str = ""

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, ("weight", "kernel"))
        check_positive("moves", self.moves)
        check_positive("threshold", self.threshold)
        check_every(self.every)
        self._doublings()

    def axes(self) -> Axes:
        return Axes(
            unit=Unit(axes="" if self.unit == "weight" else "RS", reduce="mean"),
            start=SparseStart(allocation="uniform"),
            stages=(
                Rewire(
                    removal=Adaptive(wanted=self.moves, initial=self.threshold),
                    regrowth=Grow(by="random", shared="live", again=False),
                ),
            ),
            every=self.every,
            doublings=self._doublings(),
            span=(0.0, 0.95),
            dense_first=True,
        )

    def _doublings(self) -> tuple[float, ...]:
        try:
            shares = tuple(parse_number(text) for text in self.doubled_at.split("/")) if self.doubled_at else ()
        except ValueError:
            shares = (0.0,)
        if not all(0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
            raise BadOption(
                f"doubled_at={self.doubled_at} is no list of shares of the era, above 0 to below 1 and rising, such as "
                "0.25/0.5/0.75"
            )
        return shares
