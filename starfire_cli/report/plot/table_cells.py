"""What the paper's tables are made of: cells over several runs, rows, and the set-up whose runs share a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

from starfire_cli.records.plot import RunHistory
from starfire_cli.report.plot.groups import Group

_EARLY = 0.9  # of the epochs: the paper's 90 of 100 (tables 2, 6 and 7)
Measure = Callable[[RunHistory], float | None]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table, over the runs of an experiment.

    Args:
        mean: accuracy or sparsity as a fraction, a gain likewise, or an epoch.
        spread: standard deviation over the runs; None for a single one.
        runs: how many.
        difference: to the dense run, or to what the table compares with.
        unit: "accuracy", "sparsity", "points" (a gain: shown with its sign) or "epoch".
    """

    mean: float
    spread: float | None = None
    runs: int = 1
    difference: float | None = None
    unit: str = "accuracy"

    def text(self, *, minus: str = "-", plus_minus: str = "±") -> str:
        """`75.82 ± 0.10 (-0.46)`."""
        if self.unit == "epoch":
            return f"{round(self.mean, 1):g}"
        text = f"{_rounded(self.mean):{'+' if self.unit == 'points' else ''}.2f}"
        # Sparsity is the same for every seed but in odd cases, and only these are worth the ink.
        if self.spread is not None and (self.unit != "sparsity" or self.spread >= 5e-5):
            text += f" {plus_minus} {100 * self.spread:.2f}"
        if self.difference is not None:
            text += f" ({_rounded(self.difference):+.2f})"
        return text.replace("-", minus)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row: its name, a cell (None: nothing there) for each column, and a number of its own beside the name."""

    name: str
    cells: tuple[Cell | None, ...]
    own: Cell | None = None


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table of one set-up.

    Args:
        number: the paper's.
        title: what it shows.
        setup: of which network, data and epochs.
        columns: headings; the first is the rows'.
        rows: top to bottom.
        spans: (heading, columns) above the columns; may be empty.
        notes: a sentence each.
    """

    number: int
    title: str
    setup: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    spans: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setup:
    """Experiments that may stand in one table, and the epochs (`at`) to read them after, if not the usual ones."""

    name: str
    groups: list[Group]
    epochs: int
    at: tuple[int, ...]

    @property
    def late(self) -> int:
        """The epoch that accuracies are read after."""
        return max(self.at, default=self.epochs)

    @property
    def early(self) -> int:
        """The earlier epoch of tables that have two."""
        return min(self.at, default=round(_EARLY * self.epochs))

    @property
    def sparse(self) -> list[Group]:
        """All but the dense."""
        return [group for group in self.groups if not group.first.dense]

    def dense_for(self, group: Group) -> Group | None:
        """The baseline: the dense runs, or where there are several kinds, those trained in the same way."""
        dense = [g for g in self.groups if g.first.dense]
        if len(dense) <= 1:
            return dense[0] if dense else None
        settings = group.first.settings
        alike = [g for g in dense if all(settings.get(k) == v for k, v in g.first.settings.items())]
        return alike[0] if len(alike) == 1 else None

    def notes(self) -> list[str]:
        """What the numbers are, where they are of several runs."""
        counts = sorted({len(group.runs) for group in self.groups})
        if counts[-1] == 1:
            return []
        runs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return [f"Mean and standard deviation over {runs} runs."]


def _rounded(share: float) -> float:
    return round(100 * share, 2) + 0.0  # never -0.00


def cell_of(group: Group | None, measure: Measure, unit: str = "accuracy") -> Cell | None:
    """The experiment's cell; None if no run has the number."""
    values = [v for run in group.runs if (v := measure(run)) is not None] if group else []
    if not values:
        return None
    return Cell(mean=fmean(values), spread=stdev(values) if len(values) > 1 else None, runs=len(values), unit=unit)
