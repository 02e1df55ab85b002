"""What does the mask itself look like: which kernels live, and which of their weights (paper, figure 2)?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starfire_cli.histories import MaskPicture, NetworkPicture
from starfire_cli.report import style
from starfire_cli.report.figures._frame import empty, legend, whole
from starfire_cli.report.groups import pretty_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

_DEAD = "#c5cbd3"
_LITTLE = "#ead79a"
_MOST = 8  # layers on a page


def kernels_figure(network: NetworkPicture, *, width: float = style.WIDE) -> Figure:
    """Two panels a layer: how many weights each of the K x C kernels keeps, and the first kernels weight by weight.

    Args:
        network: with the masks that are to be shown.
        width: inches; at NARROW or less the two panels are stacked.
    """
    from matplotlib.lines import Line2D

    narrow = width <= style.NARROW
    shown = network.masks[:_MOST]
    # A layer of single weights has nothing to show weight by weight.
    panels = [(mask, corner) for mask in shown for corner in ((False, True) if mask.window != (1, 1) else (False,))]
    columns = 1 if narrow else 2
    rows = len(panels) if narrow else len(shown)
    figure = empty(width, rows * (3.3 if narrow else 3.15) + 0.35)
    title = style.plain(f"{pretty_title(network.title)}: masks", 90)
    figure.suptitle(title, fontsize=style.SIZE, color=style.INK, x=0.01, ha="left")
    grid = figure.subplots(rows, columns, squeeze=False)
    colour = style.shades(style.method_colour(network.method), 3)[0]
    for place, (mask, corner) in enumerate(panels):
        axes = grid[place][0] if narrow else grid[shown.index(mask)][1 if corner else 0]
        if corner:
            _patterns(axes, mask, colour, 12 if narrow else 16)
        else:
            _counts(figure, axes, mask, colour)
    for axes in grid.flat:
        if not axes.has_data():
            axes.set_axis_off()
    squares = [Line2D([], [], linestyle="none", marker="s", markersize=6, color=c) for c in (colour, _DEAD)]
    more = len(network.masks) - len(shown)
    note = f"{more} more layers match and are not shown." if more else ""
    legend(figure, squares, ["alive", "dead"], note=note)
    return figure


def _counts(figure: Figure, axes: Axes, mask: MaskPicture, colour: str) -> None:
    """K x C, each kernel in the tone of how much of it is left."""
    K, C = mask.kept_KC.shape
    most = mask.window[0] * mask.window[1]
    _dress(axes)
    image = axes.imshow(
        mask.kept_KC,
        cmap=_tones(colour, most),
        vmin=-0.5,
        vmax=most + 0.5,
        aspect="equal" if 0.4 < K / C < 2.5 else "auto",
        interpolation="nearest" if max(K, C) <= 256 else "antialiased",
        interpolation_stage="data",
    )
    shape = f"{K} x {C} kernels" if most > 1 else f"{K} x {C} weights"
    for which in ("x", "y"):
        whole(axes, which)
    style.label(axes, x="input channel", y="output channel", title=style.plain(f"{mask.name}: {shape}", 52))
    if most > 1:
        bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, aspect=24)
        step = max(1, most // 9)
        bar.set_ticks(list(range(0, most + 1, step)))
        bar.ax.tick_params(labelsize=style.SMALL, colors=style.INK, length=0)
        bar.set_label("weights alive", fontsize=style.SMALL, color=style.INK)
        bar.outline.set_visible(False)


def _patterns(axes: Axes, mask: MaskPicture, colour: str, most: int) -> None:
    """The first kernels, R x S squares each, a gap between them."""
    from matplotlib.colors import ListedColormap

    k, c = (min(most, n) for n in mask.corner_KCRS.shape[:2])
    R, S = mask.window
    tiles: NDArray[np.float64] = np.full((k * (R + 1) - 1, c * (S + 1) - 1), np.nan)
    for r in range(R):
        for s in range(S):
            tiles[r :: R + 1, s :: S + 1] = mask.corner_KCRS[:k, :c, r, s]
    _dress(axes)
    axes.imshow(
        tiles,
        cmap=ListedColormap([_DEAD, colour]),
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="equal",
    )
    step = max(1, max(k, c) // 4)
    axes.set_xticks([(R - 1) / 2 + i * (S + 1) for i in range(0, c, step)], [str(i) for i in range(0, c, step)])
    axes.set_yticks([(S - 1) / 2 + i * (R + 1) for i in range(0, k, step)], [str(i) for i in range(0, k, step)])
    style.label(axes, x="input channel", title=f"the first {k} x {c}, weight by weight")


def _dress(axes: Axes) -> None:
    style.dress(axes, grid="")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _tones(colour: str, most: int) -> ListedColormap:
    """Dead in grey, then from a light tone to the full colour."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_hex

    ramp = LinearSegmentedColormap.from_list("alive", [_LITTLE if most > 1 else colour, colour])
    return ListedColormap([_DEAD, *(to_hex(ramp(i / max(1, most - 1))) for i in range(most))])
