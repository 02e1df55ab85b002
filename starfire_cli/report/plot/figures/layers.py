"""Figure of each layer's sparsity, in model order, layer kinds told apart (paper, figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starfire_cli.records.plot import NetworkPicture
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend, percent
from starfire_cli.report.plot.figures._layers import heading, kind_of, kind_text, name_layers, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def layers_figure(networks: Sequence[NetworkPicture], *, width: float = style.WIDE) -> Figure:
    """One panel a network, with a stem of its sparsity for each layer.

    Args:
        networks: at least one, each with at least one layer.
        width: inches; at NARROW or less layers go downwards.
    """
    from matplotlib.lines import Line2D

    narrow = width <= style.NARROW
    longest = max(len(network.inspection.layers) for network in networks)
    height = 0.14 * longest + 0.5 if narrow else 1.75 if len(networks) < 4 else 1.45
    # Names are written once where all panels have the same layers.
    alike = len({tuple(x.name for x in n.inspection.layers) for n in networks}) == 1 and not narrow
    headings = [
        heading(
            f"{title}: {100 * network.inspection.sparsity_prunable:.1f} % of all prunable weights",
            [layer.name for layer in network.inspection.layers],
            width,
        )
        for network, title in zip(networks, titles(networks), strict=True)
    ]
    margins = (0.9 if not narrow else 0.2) * (1 if alike else len(networks))
    figure = empty(width, len(networks) * height + margins + 0.15 * "".join(headings).count("\n"))
    grid = figure.subplots(len(networks), 1, squeeze=False, sharex=alike)
    for place, (axes, network, title) in enumerate(zip(grid[:, 0], networks, headings, strict=True)):
        draw_stems(axes, network, narrow=narrow)
        style.label(axes, title=title, **{"x" if narrow else "y": "sparsity (%)"})
        if alike and place < len(networks) - 1:
            axes.tick_params(axis="x", labelbottom=False)
        else:
            names = [x.name for x in network.inspection.layers]
            name_layers(axes, names, height - 0.5 if narrow else width - 0.7, sideways=narrow)
    entries = kind_handles([kind_of(x) for n in networks for x in n.inspection.layers])
    handles, labels = [handle for handle, _ in entries], [text for _, text in entries]
    handles.append(Line2D([], [], color=style.INK, linewidth=0.9))
    labels.append("all prunable weights")
    if any(_target(network) for network in networks):
        handles.append(Line2D([], [], color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 2))))
        labels.append("threshold")
    legend(figure, handles, labels)
    return figure


def kind_handles(kinds: Sequence[str]) -> list[tuple[Any, str]]:
    """The legend's entries for kinds of layers."""
    from matplotlib.lines import Line2D

    there = [kind for kind in style.KINDS if kind in kinds]
    return [
        (Line2D([], [], color=colour, marker=marker, markersize=4.5, linewidth=1.2), kind_text(kind))
        for kind, (colour, marker) in ((kind, style.KINDS[kind]) for kind in there)
    ]


def draw_stems(axes: Axes, network: NetworkPicture, *, narrow: bool) -> None:
    """Draws a stem of its sparsity for each layer, the sparsity of all, and the target; layers go down if `narrow`."""
    style.style_axes(axes, grid="x" if narrow else "y")
    for place, layer in enumerate(network.inspection.layers):
        colour, marker = style.KINDS[kind_of(layer)]
        stem, tip = ([0, layer.sparsity], [place, place]), ([layer.sparsity], [place])
        axes.plot(*(stem if narrow else stem[::-1]), color=colour, linewidth=1.6, zorder=3)
        axes.plot(*(tip if narrow else tip[::-1]), color=colour, marker=marker, markersize=4.5, clip_on=False, zorder=3)
    (axes.axvline if narrow else axes.axhline)(
        network.inspection.sparsity_prunable, color=style.INK, linewidth=0.9, zorder=1.5
    )
    target = _target(network)
    if target:
        line = axes.axvline if narrow else axes.axhline
        line(target, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1.4)
    (axes.set_xlim if narrow else axes.set_ylim)(0, 1.05)
    percent(axes, "x" if narrow else "y")


def _target(network: NetworkPicture) -> float:
    return float(network.inspection.meta.pruning.target or 0)
