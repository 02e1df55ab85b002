"""Accuracy over the size of the perturbation, a curve a network: the picture of table 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starfire_cli.attacks import RobustPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart also without colours: each curve has its own marker as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX"


def robustness_figure(
    points: Mapping[str, Sequence[RobustPoint]],
    *,
    controls: Mapping[str, Sequence[RobustPoint]] | None = None,
    attack: str = "fgsm",
    norm: str = "linf",
) -> Figure:
    """Accuracy with its 95 % interval over eps.

    Args:
        points: the rows of each network, by the name it gets in the legend.
        controls: rows to draw thin and dashed (noise of the same size), by name; a name of `points` gives its colour.
        attack: what made the images, for the axis.
        norm: how eps is measured, for the axis.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, rows) in enumerate(points.items()):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        sizes = [row.eps for row in rows]
        axes.fill_between(sizes, [r.low for r in rows], [r.high for r in rows], color=colour, alpha=0.18, linewidth=0)
        axes.plot(sizes, [r.top1 for r in rows], color=colour, marker=marker, markersize=5, label=name)
        beside = (controls or {}).get(name)
        if beside:
            axes.plot(
                [r.eps for r in beside],
                [r.top1 for r in beside],
                color=colour,
                linestyle="--",
                linewidth=1,
                label=f"{name}, noise only",
            )
    axes.set_xlabel(
        f"eps ({'largest change of a pixel value' if norm == 'linf' else 'length of the change'}, pixels in [0, 1])"
    )
    axes.set_ylabel(f"top-1 under {attack}")
    axes.set_ylim(bottom=0, top=1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
