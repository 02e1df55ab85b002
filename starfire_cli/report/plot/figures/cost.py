"""Figure of accuracy against what training has cost: FLOPs by live weights, and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from starfire_cli.records.plot import RunHistory
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend, percent
from starfire_cli.report.plot.figures._time import MANY, name_groups
from starfire_cli.report.plot.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measure = Literal["flops", "seconds"]

_FLOPS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
_TIMES = ((2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (120.0, 60.0, "minutes"))


def cost_figure(groups: Sequence[Group], *, width: float = style.WIDE) -> Figure:
    """Validation top-1 against training FLOPs by live weights, and against seconds of training and validation.

    Args:
        groups: experiments, each one or more runs; mean of cost and accuracy, and band over seeds.
        width: inches; at NARROW or less the panels are stacked.
    """
    wide, many = width > style.NARROW, len(groups) > MANY
    measures: list[Measure] = [m for m in ("flops", "seconds") if any(counts_cost(group, m) for group in groups)]
    columns = len(measures) if wide else 1
    rows = -(-len(measures) // columns)
    figure = empty(width, rows * (2.6 if wide else 2.2) + 0.2)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, (axes, measure) in enumerate(zip(grid.flat, measures, strict=True)):
        style.style_axes(axes)
        found = {group.label: _curves(group, measure) for group in groups}
        unit, name = _unit(measure, max(curve.x[-1] for of_group in found.values() for curve in of_group))
        for group in groups:
            for number, curve in enumerate(found[group.label]):
                _draw(axes, group, curve, unit, many=many, first=number == 0)
        axes.set_xlim(left=0)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.015))
        percent(axes)
        what = "training by live weights" if measure == "flops" else "training and validation"
        style.label(axes, x=f"{what} ({name})", y="validation top-1 (%)" if place == 0 or not wide else "")
    named, note = name_groups(groups, many)
    if "seconds" in measures and len({_machine(run) for group in groups for run in group.runs}) > 1:
        note = f"{note} Not all runs are of one machine: compare their seconds with care.".strip()
    legend(figure, [h for h, _ in named], [t for _, t in named], note=note)
    return figure


def counts_cost(group: Group, measure: Measure) -> list[RunHistory]:
    """The runs of an experiment that say what they have spent and what accuracy it brought."""
    return [run for run in group.runs if run.has("val_top1") and run.spent(measure)]


@dataclass(frozen=True)
class _Curve:
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]
    stopped: bool


def _curves(group: Group, measure: Measure) -> list[_Curve]:
    """The mean of the runs that got furthest, and each shorter run by itself."""
    runs = counts_cost(group, measure)
    furthest = max((run.rows[-1]["epoch"] for run in runs), default=0.0)
    together = [run for run in runs if run.rows[-1]["epoch"] == furthest]
    parts = [together, *([run] for run in runs if run.rows[-1]["epoch"] != furthest)]
    return [_curve(part, measure) for part in parts if part]


def _curve(runs: Sequence[RunHistory], measure: Measure) -> _Curve:
    spent = [run.spent(measure) for run in runs]
    tops = [{row["epoch"]: row["val_top1"] for row in run.rows if "val_top1" in row} for run in runs]
    epochs = [epoch for epoch in tops[0] if all(epoch in x and epoch in y for x, y in zip(spent, tops, strict=True))]
    heights = [[top[epoch] for top in tops] for epoch in epochs]
    return _Curve(
        x=[sum(one[epoch] for one in spent) / len(runs) for epoch in epochs],
        y=[sum(values) / len(runs) for values in heights],
        low=[min(values) for values in heights],
        high=[max(values) for values in heights],
        stopped=not runs[0].finished,
    )


def _draw(axes: Axes, group: Group, curve: _Curve, unit: float, *, many: bool, first: bool) -> None:
    colour = style.method_colour(group.method) if many else group.colour
    x = [cost / unit for cost in curve.x]
    axes.plot(
        x,
        curve.y,
        color=colour,
        linestyle=group.line,
        linewidth=1.6 if first and not many else 0.8,
        alpha=0.5 if many else 1.0,
        marker=None if many else group.marker,
        markersize=3.6,
        markevery=max(1, len(x) // 10),
        zorder=3,
    )
    if curve.low != curve.high and not many:
        axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    if curve.stopped:
        axes.plot(x[-1], curve.y[-1], marker="o", markersize=6, color=colour, markerfacecolor=style.PAPER, zorder=4)


def _unit(measure: Measure, most: float) -> tuple[float, str]:
    """(size, name) of the unit in which the largest cost is a number of few digits."""
    if measure == "flops":
        return next(((size, name) for size, name in _FLOPS if most >= size), (1.0, "FLOP"))
    return next(((size, name) for least, size, name in _TIMES if most >= least), (1.0, "seconds"))


def _machine(run: RunHistory) -> str:
    hardware: Any = run.facts.get("hardware")
    return str(hardware)
