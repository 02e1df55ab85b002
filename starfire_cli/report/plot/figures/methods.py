"""Figure of methods side by side: accuracy with paired intervals, and what each costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starfire_cli.records.compare import CellFigures, MethodRow, PairedDifference
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend
from starfire_cli.report.plot.groups import pretty_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One panel: its title and unit, and a value of each row with its interval and its seeds' own values."""

    title: str
    unit: str
    values: Sequence[float | None]
    halves: Sequence[float | None] = ()
    seeds: Sequence[Sequence[float]] = ()
    others: Sequence[float | None] = ()
    bars: bool = True


def methods_figure(rows: Sequence[MethodRow], *, eps: Sequence[str] = (), width: float = style.WIDE) -> Figure:
    """One panel a measure, one line a method; panels that nothing is known for are left out.

    Args:
        rows: dense first.
        eps: at which FGSM was measured, as written; the first is shown.
        width: inches; at NARROW or less the panels are stacked.
    """
    panels = [panel for panel in _panels(rows, eps) if any(value is not None for value in panel.values)]
    columns = 1 if width <= style.NARROW else min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = empty(width, lines * (0.85 + 0.21 * len(rows)))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        _draw(axes, panels[place], rows)
    names = [style.literal_text(pretty_title(row.title), 30) for row in rows]
    for line in grid:
        line[0].set_yticks(range(len(rows)), names, fontsize=style.SMALL)
        line[0].set_ylim(len(rows) - 0.5, -0.5)
    legend(figure, [], [], note=_note(rows))
    return figure


def _panels(rows: Sequence[MethodRow], eps: Sequence[str]) -> list[_Panel]:
    paired = any(row.top1_difference is not None for row in rows)
    found = [
        _accuracy(
            "top-1",
            rows,
            [row.top1_difference for row in rows] if paired else None,
            lambda one: one.top1,
            [row.mean("top1") for row in rows],
        )
    ]
    if eps and any(row.robust(eps[0]) is not None for row in rows):
        label = eps[0]
        found.append(
            _accuracy(
                f"FGSM {label}",
                rows,
                [row.attack_differences.get(label) for row in rows] if paired else None,
                lambda one: None if one.robustness is None else one.robustness.at(label),
                [row.robust(label) for row in rows],
            )
        )
    for name, text, unit in (
        ("training_flops", "training, all epochs", "FLOP"),
        ("inference_flops", "inference, one image", "FLOP"),
        ("packed_bytes", "packed file", "B"),
    ):
        values = [row.mean(name) for row in rows]
        size, prefix = _unit(values)
        found.append(_Panel(title=text, unit=f"{prefix}{unit}", values=[v if v is None else v / size for v in values]))
    sparse = [None if row.latency is None or row.latency.sparse is None else 1000 * row.latency.sparse for row in rows]
    dense = [None if row.latency is None else 1000 * row.latency.dense for row in rows]
    found.append(_Panel(title="one image on the CPU", unit="ms", values=sparse, others=dense))
    return found


def _accuracy(
    name: str,
    rows: Sequence[MethodRow],
    differences: Sequence[PairedDifference | None] | None,
    value: Callable[[CellFigures], float | None],
    means: Sequence[float | None],
) -> _Panel:
    """Differences from dense where there are any, in points; else the accuracies themselves, in percent."""
    if differences is None:
        own = [[100 * x for one in row.figures.values() if (x := value(one)) is not None] for row in rows]
        return _Panel(title=name, unit="%", values=[m if m is None else 100 * m for m in means], seeds=own, bars=False)
    return _Panel(
        title=name,
        unit="points from dense",
        values=[None if one is None else 100 * one.mean for one in differences],
        halves=[None if one is None or one.half_width is None else 100 * one.half_width for one in differences],
        seeds=[_apart(row.figures, row.dense, value) for row in rows],
        bars=False,
    )


def _apart(
    own: Mapping[int, CellFigures], dense: Mapping[int, CellFigures], value: Callable[[CellFigures], float | None]
) -> list[float]:
    found = []
    for seed, one in own.items():
        mine, theirs = value(one), value(dense[seed]) if seed in dense else None
        if mine is not None and theirs is not None:
            found.append(100 * (mine - theirs))
    return found


def _draw(axes: Axes, panel: _Panel, rows: Sequence[MethodRow]) -> None:
    style.style_axes(axes, grid="x")
    style.label(axes, x=panel.unit, title=panel.title)
    if not panel.bars and panel.halves:
        axes.axvline(0, color=style.MUTED, linewidth=0.9, zorder=1)
    for place, row in enumerate(rows):
        colour, value = style.method_colour(row.method), panel.values[place]
        if panel.others and (other := panel.others[place]) is not None:
            axes.plot([other], [place], marker="|", markersize=9, color=style.MUTED, linestyle="none", zorder=4)
        if value is None:
            continue
        if panel.bars:
            axes.barh([place], [value], height=0.62, color=colour, zorder=2)
            continue
        half = panel.halves[place] if panel.halves else None
        if half is not None:
            axes.hlines(place, value - half, value + half, color=colour, linewidth=1.6, zorder=2)
        if len(panel.seeds[place]) > 1:
            each = panel.seeds[place]
            axes.plot(
                each, [place] * len(each), marker="o", markersize=2.5, color=style.MUTED, linestyle="none", zorder=3
            )
        marker = style.method_marker(row.method)
        axes.plot([value], [place], marker=marker, markersize=5.5, color=colour, linestyle="none", zorder=4)
    if panel.bars:
        axes.set_xlim(left=0)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def _unit(values: Sequence[float | None]) -> tuple[float, str]:
    largest = max((value for value in values if value is not None), default=0)
    return next(((size, name) for size, name in _UNITS if largest >= size), (1.0, ""))


def _note(rows: Sequence[MethodRow]) -> str:
    notes = []
    if any(row.top1_difference is not None and row.top1_difference.half_width is not None for row in rows):
        notes.append("Lines: 95 % intervals of the mean difference at the same seed; small points: single seeds.")
    elif any(len(row.figures) > 1 for row in rows):
        notes.append("Small points: single seeds.")
    if any(row.latency is not None for row in rows):
        notes.append("On the CPU: bars by live weights, marks dense by torch.")
    return " ".join(notes)
