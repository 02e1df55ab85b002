"""Elements of figures with one position a layer: names that fit, layer kinds, titles."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starfire_cli.records.inspect import LayerFinding
from starfire_cli.records.plot import NetworkPicture
from starfire_cli.report.plot import style
from starfire_cli.report.plot.groups import disambiguate, pretty_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHORTCUTS = ("downsample", "shortcut")
_LONGEST = 26  # characters of a layer's name


def kind_of(layer: LayerFinding) -> str:
    """`3x3`, `window` (any other size), `depthwise`, `1x1`, `downsample` or `linear`; keys of style.KINDS."""
    if layer.kind == "linear":
        return "linear"
    if any(word in layer.name for word in _SHORTCUTS):
        return "downsample"
    if layer.groups > 1 and layer.shape[1] == 1:
        return "depthwise"
    if layer.kind == "pointwise":
        return "1x1"
    return "3x3" if layer.shape[2:] == (3, 3) else "window"


def kind_text(kind: str) -> str:
    """A layer kind's name in the legend."""
    words = {"window": "other windows", "linear": "fully connected", "downsample": "downsample (shortcut)"}
    return words.get(kind, kind)


def titles(networks: Sequence[NetworkPicture]) -> list[str]:
    """A title for each network, with its folder where two would be called the same."""
    places = [network.run.name if network.run else network.inspection.path.name for network in networks]
    return disambiguate([style.shorten(pretty_title(network.title), 44) for network in networks], places)


def heading(text: str, names: Sequence[str], width: float) -> str:
    """Sets a panel's title; in a figure of one column, in as many lines as fit to the right of the layers' names."""
    if width > style.NARROW:
        return style.literal_text(text, 90)
    room = width - 0.2 - 0.054 * min(_LONGEST, max(map(len, names)))
    return "\n".join(style.literal_text(line) for line in textwrap.wrap(text, int(room / 0.066)))


def name_layers(axes: Axes, names: Sequence[str], inches: float, *, sideways: bool) -> None:
    """Writes the layers' names along the axis; only every n-th where there is no room for all.

    Args:
        axes: with layer i at i.
        names: of the layers.
        inches: how long the axis is.
        sideways: layers go downwards, not to the right.
    """
    size = 6.5
    step = max(1, -(-len(names) * (size + 1.5) // (inches * 72)))
    places = range(0, len(names), int(step))
    shown = [style.literal_text(names[i], _LONGEST) for i in places]
    if sideways:
        axes.set_yticks(list(places), shown, fontsize=size)
        axes.set_ylim(len(names) - 0.4, -0.6)
    else:
        axes.set_xticks(list(places), shown, fontsize=size, rotation=90)
        axes.set_xlim(-0.6, len(names) - 0.4)
