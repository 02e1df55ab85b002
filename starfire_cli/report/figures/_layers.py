"""What pictures with one place a layer share: names that fit, kinds, titles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starfire_cli.findings import LayerFinding
from starfire_cli.histories import NetworkPicture
from starfire_cli.report import style
from starfire_cli.report.groups import percent_text, pretty_method

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHORTCUTS = ("downsample", "shortcut")


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
    """For the legend."""
    words = {"window": "other windows", "linear": "fully connected", "downsample": "downsample (shortcut)"}
    return words.get(kind, kind)


def titles(networks: Sequence[NetworkPicture]) -> list[str]:
    """A name for each, with its folder where two would be called the same."""
    named = [pretty_title(network) for network in networks]
    places = [network.run.name if network.run else network.inspection.path.name for network in networks]
    return [f"{t} ({place})" if named.count(t) > 1 else t for t, place in zip(named, places, strict=True)]


def pretty_title(network: NetworkPicture) -> str:
    """`CK 60 %`, `Dense`, or the file's name."""
    pruning = network.inspection.meta.get("pruning")
    if network.title == "dense":
        return "Dense"
    if not isinstance(pruning, dict) or not isinstance(pruning.get("target"), int | float):
        return style.shorten(network.title, 40)
    return f"{pretty_method(network.method)} {percent_text(pruning['target'])}"


def name_layers(axes: Axes, names: Sequence[str], inches: float, *, sideways: bool) -> None:
    """Write the layers' names along the axis; only every n-th where there is no room for all.

    Args:
        axes: with layer i at i.
        names: of the layers.
        inches: how long the axis is.
        sideways: layers go downwards, not to the right.
    """
    size = 6.5
    step = max(1, -(-len(names) * (size + 1.5) // (inches * 72)))
    places = range(0, len(names), int(step))
    shown = [style.plain(names[i], 26) for i in places]
    if sideways:
        axes.set_yticks(list(places), shown, fontsize=size)
        axes.set_ylim(len(names) - 0.4, -0.6)
    else:
        axes.set_xticks(list(places), shown, fontsize=size, rotation=90)
        axes.set_xlim(-0.6, len(names) - 0.4)
