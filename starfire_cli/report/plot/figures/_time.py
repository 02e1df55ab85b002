"""Time axes: epochs or steps, curves with their mean and band, the pruning era, learning-rate drops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starfire_cli.records.plot import RunHistory
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import whole
from starfire_cli.report.plot.groups import Group, pretty_method
from starfire_cli.text import epoch_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

AXES = {"epoch": "epoch", "step": "optimizer step"}
"""Labels of the time axes."""
MANY = 20
"""More experiments than that are not named one by one."""
_STRIPS = 4
_DROPS = 8


@dataclass(frozen=True)
class Curve:
    """One line, with the ends of its band: several runs, or one and no band."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]
    runs: int
    stopped: bool


def curves(group: Group, key: str, axis: str) -> list[Curve]:
    """The mean of the runs that got furthest, and each shorter run by itself."""
    having = [run for run in group.runs if run.has(key)]
    furthest = max((run.rows[-1]["epoch"] for run in having), default=0.0)
    together = [run for run in having if run.rows[-1]["epoch"] == furthest]
    alone = [run for run in having if run.rows[-1]["epoch"] != furthest]
    made = []
    if together:
        values = [{row["epoch"]: row[key] for row in run.rows if key in row} for run in together]
        epochs = sorted({row["epoch"] for run in together for row in run.rows} | set(_breaks(together[0])))
        known = [[of_run[epoch] for of_run in values if epoch in of_run] for epoch in epochs]
        made.append(
            Curve(
                x=[_x(together[0], epoch, axis) for epoch in epochs],
                y=[sum(v) / len(v) if v else math.nan for v in known],
                low=[min(v, default=math.nan) for v in known],
                high=[max(v, default=math.nan) for v in known],
                runs=len(together),
                stopped=not together[0].finished,
            )
        )
    for run in alone:
        at = {row["epoch"]: row.get(key, math.nan) for row in run.rows} | dict.fromkeys(_breaks(run), math.nan)
        x, y = [_x(run, epoch, axis) for epoch in sorted(at)], [at[epoch] for epoch in sorted(at)]
        made.append(Curve(x=x, y=y, low=y, high=y, runs=1, stopped=not run.finished))
    return made


def draw(axes: Axes, group: Group, key: str, axis: str, *, many: bool, line: Any = None, ends: bool = True) -> None:
    """Draws one experiment's curves, with a hollow end (if `ends`) where a run is unfinished."""
    colour = style.method_colour(group.method) if many else group.colour
    for number, curve in enumerate(curves(group, key, axis)):
        points = sum(not math.isnan(y) for y in curve.y)
        axes.plot(
            curve.x,
            curve.y,
            color=colour,
            linestyle=group.line if line is None else line,
            linewidth=0.8 if many or number else 1.6,
            alpha=0.5 if many else 1.0,
            marker=group.marker if points == 1 or not many else None,
            markersize=3.6 if points > 1 else 6,
            markevery=max(1, len(curve.x) // 10),
            zorder=3,
        )
        if curve.runs > 1 and not many:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0, zorder=2)
        if curve.stopped and points and ends:
            end = max(i for i, y in enumerate(curve.y) if not math.isnan(y))
            axes.plot(
                curve.x[end],
                curve.y[end],
                marker="o",
                markersize=6,
                color=colour,
                markerfacecolor=style.PAPER,
                zorder=4,
            )


def mark_time(
    axes: Axes, runs: Sequence[RunHistory], axis: str, *, strips: bool = True, drops: bool = True
) -> list[tuple[Artist, str]]:
    """Shades the era, or shows each era as a strip above the axes; dots (if `drops`) mark learning-rate drops.

    Returns legend entries for what was marked.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[tuple[Artist, str]] = []
    eras = sorted({tuple(_x(run, e, axis) for e in run.era) for run in runs if run.era})
    if len(eras) == 1:
        axes.axvspan(eras[0][0], eras[0][1], color=style.SHADE, linewidth=0, zorder=0)
        entries.append((Patch(facecolor=style.SHADE, edgecolor=style.GRID), "pruning era"))
    elif eras:
        shown = eras if len(eras) <= _STRIPS else [(min(e[0] for e in eras), max(e[1] for e in eras))]
        if strips:
            _strips(axes, shown, len(eras))
            entries.append((Patch(facecolor=style.GRID), "pruning eras" if len(shown) > 1 else "all pruning eras"))
    begins = sorted({_x(run, epoch, axis) for run in runs for epoch in rounds_of(run)})
    if 0 < len(begins) <= MANY:
        for begin in begins:
            axes.axvline(begin, color=style.GRID, linewidth=0.9, zorder=1)
        entries.append((Line2D([], [], color=style.GRID, linewidth=0.9), "a new round begins"))
    falls = sorted({_x(run, drop, axis) for run in runs for drop in run.lr_drops})
    if drops and 0 < len(falls) <= _DROPS:
        for fall in falls:
            axes.axvline(fall, color=style.MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        entries.append((Line2D([], [], color=style.MUTED, linewidth=0.9, linestyle=(0, (1, 2))), "learning rate falls"))
    return entries


def finish_time(axes: Axes, runs: Sequence[RunHistory], axis: str) -> None:
    """Sets limits that hold the whole run as planned, and ticks at whole epochs."""
    ends = [_x(run, run.epochs, axis) for run in runs if run.epochs]
    seen = [_x(run, run.rows[-1]["epoch"], axis) for run in runs if run.rows]
    last = max([*ends, *seen], default=1.0)
    axes.set_xlim(0, 1.02 * last)
    whole(axes)


def name_groups(groups: Sequence[Group], many: bool) -> tuple[list[tuple[Line2D, str]], str]:
    """Legend entries, by experiment or, where there are too many, by method; and a note."""
    from matplotlib.lines import Line2D

    note = _state_note(groups)
    if not many:
        uneven = len({len(group.runs) for group in groups}) > 1
        return [(_handle(group), _with_runs(group) if uneven else group.label) for group in groups], note
    entries = []
    for method in dict.fromkeys(group.method for group in groups):
        count = sum(group.method == method for group in groups)
        handle = Line2D([], [], color=style.method_colour(method), linewidth=1.6)
        name = pretty_method(method) if method != "?" else "Unknown"
        entries.append((handle, f"{name} ({count} experiment{'s' if count > 1 else ''})"))
    return entries, note.replace("; bands: lowest to highest", "")


def rounds_of(run: RunHistory) -> list[float]:
    """The epochs after which a new round of training begins, where a run has several."""
    pairs = zip(run.rows, run.rows[1:], strict=False)
    return [a["epoch"] for a, b in pairs if "round" in a and a["round"] != b.get("round")]


def _breaks(run: RunHistory) -> list[float]:
    """Places without a value, where a line must not go on."""
    return [epoch + 1e-6 for epoch in rounds_of(run)]


def _handle(group: Group) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=group.colour, linestyle=group.line, marker=group.marker, markersize=3.6, linewidth=1.6)


def _with_runs(group: Group) -> str:
    return f"{group.label} ({len(group.runs)} runs)" if len(group.runs) > 1 else group.label


def _state_note(groups: Sequence[Group]) -> str:
    """A note on the lines and bands, and on unfinished runs."""
    counts = sorted({len(group.runs) for group in groups})
    said = []
    if counts[-1:] > [1]:
        seeds = f"{counts[-1]}" if len(counts) == 1 else f"up to {counts[-1]}"
        said.append(f"Lines: mean of {seeds} runs; bands: lowest to highest.")
    if names := unfinished_runs(groups):
        said.append(f"Hollow end: not at its last epoch yet ({names}).")
    return " ".join(said)


def unfinished_runs(groups: Sequence[Group]) -> str:
    """The unfinished runs, three of them by name; empty if there are none."""
    going = [run for group in groups for run in group.runs if run.rows and not run.finished]
    more = f" and {len(going) - 3} more" if len(going) > 3 else ""
    return ", ".join(style.shorten(run.name, 24) for run in going[:3]) + more


def _strips(axes: Axes, eras: Sequence[tuple[float, ...]], count: int) -> None:
    """Thin bars above the axes, one an era, labelled at their ends."""
    transform = axes.get_xaxis_transform()
    for number, (first, last) in enumerate(eras):
        y = 1.035 + 0.05 * number
        (bar,) = axes.plot([first, last], [y, y], transform=transform, color=style.GRID, linewidth=4.5, clip_on=False)
        bar.set_solid_capstyle("butt")
        text = f" {epoch_text(first)} to {epoch_text(last)}" if len(eras) > 1 else f" {count} eras"
        axes.text(last, y, text, transform=transform, fontsize=6, color=style.MUTED, va="center", ha="left")


def _x(run: RunHistory, epoch: float, axis: str) -> float:
    """The position of an epoch on the axis; steps are counted from the run's own rows."""
    if axis == "epoch":
        return epoch
    row = next(row for row in reversed(run.rows) if row.get("step") and row["epoch"])
    return epoch * row["step"] / row["epoch"]


def counts_steps(run: RunHistory) -> bool:
    """Whether a run can be drawn by step."""
    return any(row.get("step") and row["epoch"] for row in run.rows)
