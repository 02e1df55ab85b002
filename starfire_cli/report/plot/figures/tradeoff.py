"""Figure of accuracy against sparsity, multiply-accumulates and file size, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starfire_cli.records.plot import NetworkPicture, RunHistory
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend, percent
from starfire_cli.report.plot.figures._time import MANY, name_groups, unfinished_runs
from starfire_cli.report.plot.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measure = Callable[[RunHistory], float | None]


def tradeoff_figure(
    groups: Sequence[Group], networks: Mapping[Path, NetworkPicture], *, width: float = style.WIDE
) -> Figure:
    """One panel a cost, one point an experiment: the best epoch's top-1, mean and range over seeds.

    Runs that have not reached their last epoch are no part of a mean or of the front; an experiment that has no other
    runs is a hollow point.

    Args:
        groups: experiments.
        networks: the best checkpoints, by run folder; panels that nothing is known for are left out.
        width: inches; at NARROW or less the panels are stacked.
    """
    from matplotlib.lines import Line2D

    measures = _measures(networks)
    panels = [(name, better, measure) for name, better, measure in measures if _known(groups, measure)]
    narrow = width <= style.NARROW
    rows, columns = (len(panels), 1) if narrow else (1, len(panels))
    figure = empty(width, rows * 2.6 + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=not narrow)
    many = len(groups) > MANY
    fronts = 0
    for place, (axes, (name, better, measure)) in enumerate(zip(grid.flat, panels, strict=True)):
        style.style_axes(axes, grid="both")
        found = _draw(axes, groups, measure, many)
        fronts += _pareto(axes, found, better)
        if name.startswith("sparsity"):
            low, high = axes.get_xlim()
            several = len({x for line in axes.get_lines() for x in line.get_xdata()}) > 1
            axes.set_xlim(*((max(low, -0.02), min(high, 1.02)) if several else (-0.02, 1.02)))
            percent(axes, "x")
        else:
            axes.set_xlim(left=0)
        axes.set_ylim(max(axes.get_ylim()[0], -0.02), min(axes.get_ylim()[1], 1.015))  # no tick at 102 %
        percent(axes)
        style.label(axes, x=name, y="best validation top-1 (%)" if place == 0 or narrow else "")
    named, _ = name_groups(groups, many)
    shown = [style.method_marker(method) for method in dict.fromkeys(group.method for group in groups)]
    for place, (handle, _) in enumerate(named):
        handle.set(linestyle="none", marker=shown[place] if many else handle.get_marker(), markersize=6)
    if fronts:
        named.append((Line2D([], [], color=style.MUTED, linewidth=0.9, drawstyle="steps-post"), "Pareto front"))
    several = any(len(_counted(group)) > 1 for group in groups)
    notes = ["Points: mean over seeds; bars: lowest to highest."] if several else []
    if names := unfinished_runs(groups):
        notes.append(f"Left out, or hollow: not at the last epoch yet ({names}).")
    legend(figure, [h for h, _ in named], [t for _, t in named], note=" ".join(notes))
    return figure


def _measures(networks: Mapping[Path, NetworkPicture]) -> list[tuple[str, int, Measure]]:
    """(axis label, +1 where more is better, measure of a run)."""
    macs = {path: n.inspection.macs[1] for path, n in networks.items() if n.inspection.macs is not None}
    size = {path: n.size for path, n in networks.items()}
    macs_unit, macs_name = _unit(macs.values(), ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")))
    size_unit, size_name = _unit(size.values(), ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")))
    guessed = any(network.packed is None for network in networks.values())

    def sparsity(run: RunHistory) -> float | None:
        best = run.best()
        return best.get("sparsity_prunable") if best else None

    return [
        ("sparsity of prunable weights (%)", 1, sparsity),
        (f"multiply-accumulates ({macs_name})", -1, lambda run: _scaled(macs.get(run.path), macs_unit)),
        (
            f"packed file ({size_name}{', estimated' if guessed else ''})",
            -1,
            lambda run: _scaled(size.get(run.path), size_unit),
        ),
    ]


def _unit(values: Any, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    largest = max(values, default=0)
    return next(((size, name) for size, name in units if largest >= size), units[-1])


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _known(groups: Sequence[Group], measure: Measure) -> bool:
    return any(measure(run) is not None and run.best() is not None for group in groups for run in group.runs)


def _counted(group: Group) -> list[RunHistory]:
    """The finished runs of an experiment, or all where none is finished."""
    return [run for run in group.runs if run.finished] or list(group.runs)


def _draw(axes: Axes, groups: Sequence[Group], measure: Measure, many: bool) -> list[tuple[float, float]]:
    """Draws each experiment's point; returns those of finished runs."""
    found = []
    for group in groups:
        pairs = []
        counted = _counted(group)
        finished = counted[0].finished
        for run in counted:
            cost, best = measure(run), run.best()
            if cost is not None and best is not None:
                pairs.append((cost, best["val_top1"]))
        if not pairs:
            continue
        x = sum(cost for cost, _ in pairs) / len(pairs)
        heights = [top1 for _, top1 in pairs]
        y = sum(heights) / len(heights)
        colour = style.method_colour(group.method) if many else group.colour
        axes.vlines(x, min(heights), max(heights), color=colour, linewidth=1.2, zorder=2.5)
        marker, size = (style.method_marker(group.method), 4) if many else (group.marker, 6)
        face = colour if finished else "none"
        axes.plot([x], [y], color=colour, marker=marker, markersize=size, linestyle="none", zorder=3, mfc=face)
        if finished:
            found.append((x, y))
    return found


def pareto(points: Sequence[tuple[float, float]], better: int) -> list[tuple[float, float]]:
    """Points not dominated by any other; `better` is 1 where a larger first value is better, else -1. Best first."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda p: (-better * p[0], -p[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def _pareto(axes: Axes, points: Sequence[tuple[float, float]], better: int) -> bool:
    """Draws the front; returns False where there is none, as with a single point."""
    front = pareto(points, better)
    # From the cheapest on: its accuracy is what one can have until the next point's cost is paid.
    if len(front) > 1:
        x, y = zip(*front, strict=True)
        axes.plot(x, y, color=style.MUTED, linewidth=0.9, drawstyle="steps-post", zorder=1.5)
    return len(front) > 1
