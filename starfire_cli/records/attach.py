"""Records of a training with an attached pruner: how sparse each layer is, and where the era stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starfire_cli.markup import RecordTable
from starfire_cli.records.totals import LayerTotals
from starfire_cli.records.train import PlanLayer
from starfire_cli.text import shape_text, some


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One pruned layer.

    Args:
        name: of the module.
        kind: "window", "pointwise" or "linear".
        shape: (K, C, R, S) or (O, I); C counts the channels of one group.
        weights: their number.
        zeros: dead weights.
        planned: the share of dead weights at the end of the era; None where the method shares them out among layers.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    planned: float | None = None

    @property
    def sparsity(self) -> float:
        """Dead weights over all weights."""
        return self.zeros / self.weights


@dataclass(frozen=True, kw_only=True, repr=False)
class PruningSummary(LayerTotals):
    """The state of a model in training; `print` shows it as a table.

    Args:
        method, fc: specs of the methods for convolutions and for linear layers.
        target: the final sparsity threshold; None where the method aims at none.
        step: optimizer steps so far.
        first_step, last_step: of the era.
        layers: the pruned ones, in model order.
        left_out: (parameter, why it is not pruned).
        parameters: of the whole network.
        planned: the share of the weights of pruned layers that is dead at the end of the era; whole units go, which may
            be more than the target. None where the method tells it in the end only.
    """

    method: str
    fc: str
    target: float | None
    step: int
    first_step: int
    last_step: int
    layers: tuple[LayerSummary, ...]
    left_out: tuple[tuple[str, str], ...]
    parameters: int
    planned: float | None = None

    @property
    def phase(self) -> str:
        """The state of the era, in words."""
        if not self.last_step:
            return f"step {self.step}, nothing is to be pruned"
        if self.step < self.last_step:
            when = "before" if self.step < self.first_step else "in"
            return f"step {self.step}, {when} the era {self.first_step}:{self.last_step}"
        return f"step {self.step}, after the era {self.first_step}:{self.last_step}: the masks are fixed"

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _names_by_reason(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, why in self.left_out:
            found.setdefault(why, []).append(name)
        return found

    def _table(self) -> RecordTable:
        aim = "" if self.target is None else f", target {self.target:g}"
        ahead = self.step < self.last_step and any(layer.planned is not None for layer in self.layers)
        rows = [(x.name, x.kind, shape_text(x.shape), f"{x.weights:,}", f"{x.sparsity:.2%}") for x in self.layers]
        total = ("all", "", "", f"{self.prunable:,}", f"{self.sparsity_prunable:.2%}")
        return RecordTable(
            title=f"{self.method}, fc {self.fc}{aim}{planned_text(self.target, self.planned)}: {self.phase}",
            head=("layer", "kind", "shape", "weights", "dead", *(("in the end",) if ahead else ())),
            rows=[
                (*row, *((_share(layer.planned),) if ahead else ()))
                for row, layer in zip(rows, self.layers, strict=True)
            ],
            total=(*total, *((_share(self.planned),) if ahead else ())),
            notes=[f"left out: {some(names)}: {why}" for why, names in self._names_by_reason().items()],
        )


def planned_sparsity(rows: Sequence[PlanLayer]) -> float:
    """The share of the weights of all these layers that the plan takes, from 0 to 1."""
    return sum(row.weights - row.left for row in rows) / max(1, sum(row.weights for row in rows))


def planned_text(target: float | None, planned: float | None) -> str:
    """The planned sparsity in words, where it is not the target."""
    return (
        "" if target is None or planned is None or abs(planned - target) < 1e-3 else f", which comes to {planned:.2%}"
    )


def _share(planned: float | None) -> str:
    return "" if planned is None else f"{planned:.2%}"
