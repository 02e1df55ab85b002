"""Figure of a pruned network at a glance: accuracy by epoch beside the dense run, and the sparsity of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starfire_cli.records.plot import NetworkPicture
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend, percent, whole
from starfire_cli.report.plot.figures._layers import kind_of, titles
from starfire_cli.report.plot.figures._time import AXES, MANY, draw, finish_time, mark_time, name_groups
from starfire_cli.report.plot.figures.layers import draw_stems, kind_handles
from starfire_cli.report.plot.groups import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def overview_figure(
    groups: Sequence[Group], network: NetworkPicture, *, axis: str = "epoch", width: float = style.WIDE
) -> Figure:
    """Two panels: top-1 by epoch of all runs, and the layers of one sparse network.

    Args:
        groups: experiments, each one or more runs.
        network: with at least one layer.
        axis: "epoch" or "step".
        width: inches; at NARROW or less the panels are stacked.
    """
    runs = [run for group in groups for run in group.runs if run.rows]
    wide, many = width > style.NARROW, len(groups) > MANY
    figure = empty(width, 2.6 if wide else 4.6)
    shape, ratios = ((1, 2), (2, 3)) if wide else ((2, 1), (1,))
    accuracy, layers = figure.subplots(*shape, squeeze=False, width_ratios=ratios).flat
    style.style_axes(accuracy)
    for group in groups:
        draw(accuracy, group, "val_top1", axis, many=many)
    marks = mark_time(accuracy, runs, axis, strips=True)
    finish_time(accuracy, runs, axis)
    accuracy.set_ylim(max(accuracy.get_ylim()[0], -0.02), min(accuracy.get_ylim()[1], 1.015))
    percent(accuracy)
    style.label(accuracy, x=AXES[axis], y="validation top-1 (%)")
    draw_stems(layers, network, narrow=False)
    style.label(
        layers,
        x="layer, from input to output",
        y="sparsity (%)",
        title=f"{titles([network])[0]}: {100 * network.inspection.sparsity_prunable:.1f} % of prunable weights",
    )
    layers.set_xlim(-0.6, len(network.inspection.layers) - 0.4)
    whole(layers)
    named, note = name_groups(groups, many)
    kinds = kind_handles([kind_of(layer) for layer in network.inspection.layers])
    entries = [*named, *marks, *kinds]
    legend(figure, [h for h, _ in entries], [t for _, t in entries], note=note)
    return figure
