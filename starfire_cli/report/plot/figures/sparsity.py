"""Figure of sparsity over training: the threshold and the sparsity reached (paper, figure 4 top right, 7 to 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from starfire_cli.records.plot import RunHistory
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend, percent
from starfire_cli.report.plot.figures._time import AXES, MANY, draw, finish_time, mark_time, name_groups
from starfire_cli.report.plot.groups import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sparsity_figure(groups: Sequence[Group], *, axis: str = "epoch", width: float = style.WIDE) -> Figure:
    """True sparsity over prunable weights, solid, and the threshold, dashed, by epoch.

    Args:
        groups: experiments, each one or more runs.
        axis: "epoch" or "step".
        width: inches.
    """
    from matplotlib.lines import Line2D

    groups = [replace(g, runs=tuple(map(_from_the_start, g.runs)), line="-") for g in groups]
    runs = [run for group in groups for run in group.runs if run.rows]
    figure = empty(width, 3.0 if width > style.NARROW else 2.7)
    axes = figure.add_subplot()
    style.style_axes(axes)
    many = len(groups) > MANY
    thin = (0, (3, 2))
    for group in groups:
        unmarked = replace(group, runs=group.runs[:1], marker="")  # equal for all its seeds
        draw(axes, unmarked, "threshold", axis, many=many, line=thin, ends=False)
        draw(axes, group, "sparsity_prunable", axis, many=many)
        if len(groups) == 1:
            draw(axes, unmarked, "sparsity_total", axis, many=False, line=(0, (1, 1.4)), ends=False)
    entries = mark_time(axes, runs, axis, drops=False)
    finish_time(axes, runs, axis)
    axes.set_ylim(bottom=0)
    for drawn in axes.get_lines():  # all of which is inside: no marker at 0 % is cut
        drawn.set_clip_on(False)
    percent(axes)
    style.label(axes, x=AXES[axis], y="sparsity (%)")
    named, note = name_groups(groups, many)
    kinds = [
        (Line2D([], [], color=style.MUTED, linewidth=1.6), "true, over prunable weights"),
        *(
            [(Line2D([], [], color=style.MUTED, linestyle=(0, (1, 1.4)), linewidth=1.6), "true, over all parameters")]
            if len(groups) == 1 and any(run.has("sparsity_total") for run in runs)
            else []
        ),
        *(
            [(Line2D([], [], color=style.MUTED, linestyle=thin, linewidth=1.6), "threshold")]
            if any(run.has("threshold") for run in runs)
            else []
        ),
    ]
    every = [*named, *kinds, *entries]
    legend(figure, [h for h, _ in every], [t for _, t in every], note=note)
    return figure


def _from_the_start(run: RunHistory) -> RunHistory:
    """Adds the two points without rows: at step 0 and where the era begins nothing is dead, or what began so."""
    if not run.rows or run.dense or run.settings.get("init", "?") is not None:
        return run
    steps = next((row["step"] / row["epoch"] for row in run.rows if row.get("step") and row["epoch"]), None)
    rows = {row["epoch"]: row for row in run.rows}
    for epoch in {0.0, run.era[0] if run.era else 0.0}:
        if epoch < run.rows[0]["epoch"] or epoch not in rows:
            keys = ("threshold", "sparsity_prunable", "sparsity_total")
            nothing = {key: run.start_sparsity for key in keys if run.has(key)}
            rows.setdefault(epoch, {"epoch": epoch, **({"step": epoch * steps} if steps else {}), **nothing})
    return replace(run, rows=tuple(rows[epoch] for epoch in sorted(rows)))
