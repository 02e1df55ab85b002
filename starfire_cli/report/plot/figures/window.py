"""Figure of the number of live weights, of nine, in each layer's windows (paper, figure 2a)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starfire_cli.records.inspect import LayerFinding
from starfire_cli.records.plot import NetworkPicture
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend
from starfire_cli.report.plot.figures._layers import heading, name_layers, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST = 0.01  # of an area, so that the rarest count is still seen


def windows_of(network: NetworkPicture) -> list[LayerFinding]:
    """The layers with 3 x 3 windows."""
    return [x for x in network.inspection.layers if x.kind == "window" and x.shape[2:] == (3, 3)]


def window_figure(networks: Sequence[NetworkPicture], *, width: float = style.WIDE) -> Figure:
    """One panel a network: for each layer, squares as large as the share of windows with 0, 1, ... 9 live weights.

    Args:
        networks: each with at least one layer of 3 x 3 windows.
        width: inches; at NARROW or less layers go downwards.
    """
    from matplotlib.lines import Line2D

    narrow = width <= style.NARROW
    longest = max(len(windows_of(network)) for network in networks)
    side = min(0.2, (width - (1.9 if narrow else 0.7)) / (10 if narrow else longest))  # inches a square
    height = 0.18 * longest + 0.5 if narrow else 1.95 if len(networks) < 4 else 1.5
    alike = len({tuple(x.name for x in windows_of(n)) for n in networks}) == 1 and not narrow
    headings = [
        heading(title, [layer.name for layer in windows_of(network)], width)
        for network, title in zip(networks, titles(networks), strict=True)
    ]
    margins = (0.9 if not narrow else 0.3) * (1 if alike else len(networks))
    figure = empty(width, len(networks) * height + margins + 0.15 * "".join(headings).count("\n"))
    grid = figure.subplots(len(networks), 1, squeeze=False, sharex=alike)
    area = (72 * min(side, 0.155 if not narrow else 0.16)) ** 2
    for place, (axes, network, title) in enumerate(zip(grid[:, 0], networks, headings, strict=True)):
        _squares(axes, network, area, narrow)
        style.label(axes, title=title, **{"x" if narrow else "y": "survivors of nine"})
        if alike and place < len(networks) - 1:
            axes.tick_params(axis="x", labelbottom=False)
        else:
            names = [x.name for x in windows_of(network)]
            name_layers(axes, names, height - 0.5 if narrow else width - 0.7, sideways=narrow)
    shares = (1.0, 0.25, 0.05)
    handles = [
        Line2D([], [], linestyle="none", marker="s", color=style.MUTED, markersize=(area * share) ** 0.5)
        for share in shares
    ]
    mean = Line2D([], [], linestyle="none", marker="|" if narrow else "_", color=style.INK, markersize=8)
    left_out = sum(x.kind == "window" for n in networks for x in n.inspection.layers) - sum(
        len(windows_of(n)) for n in networks
    )
    legend(
        figure,
        [*handles, mean],
        [*(f"{100 * share:g} % of the layer's windows" for share in shares), "mean"],
        note="Layers with larger windows are not shown." if left_out else "",
    )
    return figure


def _squares(axes: Axes, network: NetworkPicture, area: float, narrow: bool) -> None:
    style.style_axes(axes, grid="")
    colour = style.method_colour(network.method)
    if colour == style.INK:
        colour = style.MUTED  # so that the mean is seen on it
    for place, layer in enumerate(windows_of(network)):
        windows = sum(layer.per_window)
        counts = [(kept, n / windows) for kept, n in enumerate(layer.per_window) if n]
        kept, share = [k for k, _ in counts], [s for _, s in counts]
        at = [place] * len(counts)
        sizes = [area * max(s, _LEAST) for s in share]
        axes.scatter(*((kept, at) if narrow else (at, kept)), s=sizes, marker="s", color=colour, linewidths=0, zorder=3)
        mean = sum(k * s for k, s in counts)
        axes.plot(
            *(([mean], [place]) if narrow else ([place], [mean])),
            marker="|" if narrow else "_",
            color=style.INK,
            markersize=8,
            linestyle="none",
            zorder=4,
        )
    if narrow:
        axes.set_xlim(-0.6, 9.6)
        axes.set_xticks(range(10))
    else:
        axes.set_ylim(-0.6, 9.6)
        axes.set_yticks(range(10))
