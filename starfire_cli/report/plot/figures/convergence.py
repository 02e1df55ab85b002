"""Figure of validation accuracy, epoch by epoch (paper, figures 4 and 6 to 11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend, percent
from starfire_cli.report.plot.figures._time import AXES, MANY, draw, finish_time, mark_time, name_groups
from starfire_cli.report.plot.groups import Group

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {"val_top1": "top-1", "val_top5": "top-5", "robust_top1": "top-1 under attack"}
_ENOUGH = 6  # epochs from which on the end is shown again, larger


def convergence_figure(groups: Sequence[Group], *, axis: str = "epoch", width: float = style.WIDE) -> Figure:
    """Top-1, top-5 and (of robust training) top-1 under attack by epoch, the whole run beside its last third.

    Args:
        groups: experiments, each one or more runs; mean and band over seeds.
        axis: "epoch" or "step".
        width: inches; at NARROW or less the panels are stacked.
    """
    runs = [run for group in groups for run in group.runs if run.rows]
    keys = [key for key in _NAMES if any(run.has(key) for run in runs)]
    last = max((run.rows[-1]["epoch"] for run in runs), default=0)
    zoom = last >= _ENOUGH
    wide = width > style.NARROW
    panels = [(key, end) for key in keys for end in ((False, True) if zoom else (False,))]
    columns = 2 if wide and zoom else 1
    rows = -(-len(panels) // columns)
    figure = empty(width, rows * (2.15 if wide else 2.0) + 0.35)
    many = len(groups) > MANY
    entries: list[tuple[Artist, str]] = []
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, (axes, (key, end)) in enumerate(zip(grid.flat, panels, strict=True)):
        style.style_axes(axes)
        for group in groups:
            draw(axes, group, key, axis, many=many)
        marks = mark_time(axes, runs, axis, strips=place < columns and not end)
        entries = marks if place == 0 else entries
        finish_time(axes, runs, axis)
        if end:
            _zoom(axes)
        elif axes.dataLim.y1 <= 1:
            axes.set_ylim(max(axes.get_ylim()[0], -0.02), min(axes.get_ylim()[1], 1.015))  # no tick at 102 %
        percent(axes)
        name = _NAMES[key]
        bottom = place >= len(panels) - columns
        style.label(axes, x=AXES[axis] if bottom or not wide else "", y=f"validation {name} (%)" if not end else "")
        if end:
            style.label(axes, x=axes.get_xlabel(), title=f"{name}, the last third", y="" if wide else f"{name} (%)")
    named, note = name_groups(groups, many)
    legend(figure, [h for h, _ in [*named, *entries]], [t for _, t in [*named, *entries]], note=note)
    return figure


def _zoom(axes: Axes) -> None:
    """Limits the axes to the last third of the epochs and to the curves' heights there."""
    low, high = axes.get_xlim()
    first = high - (high - low) / 3
    lines = [line for line in axes.get_lines() if line.get_transform() == axes.transData]
    points = [(float(x), float(y)) for line in lines for x, y in np.asarray(line.get_xydata())]
    inside = [y for x, y in points if x >= first and y == y]
    axes.set_xlim(first, high)
    if inside:
        room = max(0.12 * (max(inside) - min(inside)), 0.002)
        axes.set_ylim(min(inside) - room, min(max(inside) + room, 1 + 0.1 * room))
