"""Figure of the masks themselves: live kernels and their live weights (paper, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from starfire_cli.records.plot import MaskPicture, NetworkPicture
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend, percent, whole
from starfire_cli.report.plot.groups import pretty_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap
    from matplotlib.figure import Figure

_DEAD = style.GRID
_LITTLE = "#ead79a"
_SIDE = 160  # dots a side, beyond which kernels are shown in blocks
_MOST = 8  # layers on a page


def kernels_figure(network: NetworkPicture, *, width: float = style.WIDE) -> Figure:
    """Two panels a layer: live weights in each of the K x C kernels, and the first kernels weight by weight.

    Args:
        network: with the masks that are to be shown.
        width: inches; at NARROW or less the two panels are stacked.
    """
    from matplotlib.lines import Line2D

    columns = 1 if width <= style.NARROW else 2
    shown = network.masks[:_MOST]
    slots = _slots(shown, columns)
    rows = -(-len(slots) // columns)
    figure = empty(width, rows * 3.25 + 0.35)
    title = style.literal_text(f"{pretty_title(network.title)}: masks", int(12.5 * width))
    figure.suptitle(title, fontsize=style.SIZE, color=style.INK, x=0.01, ha="left")
    colour = style.method_colour(network.method)
    for axes, slot in zip(figure.subplots(rows, columns, squeeze=False).flat, [*slots, None], strict=False):
        if slot is None:
            axes.set_axis_off()
        elif slot[1]:
            _patterns(axes, slot[0], colour, 12 if columns == 1 else 16)
        else:
            _counts(figure, axes, slot[0], colour)
    squares = [Line2D([], [], linestyle="none", marker="s", markersize=6, color=c) for c in (colour, _DEAD)]
    more = len(network.masks) - len(shown)
    note = f"{more} more layers match and are not shown." if more else ""
    legend(figure, squares, ["alive", "dead"], note=note)
    return figure


def _slots(masks: Sequence[MaskPicture], columns: int) -> list[tuple[MaskPicture, bool] | None]:
    """The panels row by row: a mask, and beside it its first kernels if they have more than one weight."""
    slots: list[tuple[MaskPicture, bool] | None] = []
    for mask in masks:
        several = mask.window != (1, 1)
        if several and len(slots) % columns:
            slots.append(None)
        slots += [(mask, False), (mask, True)] if several else [(mask, False)]
    return slots


def _counts(figure: Figure, axes: Axes, mask: MaskPicture, colour: str) -> None:
    """The K x C kernels, coloured by their share of live weights; many kernels as means of blocks."""
    K, C = mask.kept_KC.shape
    most = mask.window[0] * mask.window[1]
    block = -(-max(K, C) // _SIDE)
    _dress(axes)
    image = axes.imshow(
        mask.kept_KC if block == 1 else block_means(mask.kept_KC, block) / most,
        cmap=_steps(colour, most) if block == 1 else _shares(colour),
        vmin=-0.5 if block == 1 else 0,
        vmax=most + 0.5 if block == 1 else 1,
        extent=(-0.5, C - 0.5, K - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    for which in ("x", "y"):
        whole(axes, which)
    shape = f"{K} x {C} {'kernels' if most > 1 else 'weights'}"
    averaged = f", {block} x {block} a dot" if block > 1 else ""
    title = f"{style.literal_text(mask.name)}\n{shape}{averaged}"
    style.label(axes, x="input channel", y="output channel", title=title)
    if most == 1 and block == 1:
        return
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=24)
    if block == 1:
        bar.set_ticks(list(range(0, most + 1, max(1, most // 9))))
    else:
        percent(bar.ax)
    bar.ax.set_facecolor(_DEAD)
    bar.ax.tick_params(labelsize=style.SMALL, colors=style.INK, length=0)
    bar.set_label("weights alive" if block == 1 else "alive (%)", fontsize=style.SMALL, color=style.INK)
    bar.outline.set_visible(False)


def block_means(values_KC: NDArray[Any], block: int) -> NDArray[np.float64]:
    """The mean of each `block` x `block` square; those at the end may be smaller."""
    K, C = values_KC.shape
    rows, columns = np.arange(0, K, block), np.arange(0, C, block)
    sums = np.add.reduceat(np.add.reduceat(values_KC.astype(np.float64), rows, axis=0), columns, axis=1)
    sizes = np.outer(np.minimum(block, K - rows), np.minimum(block, C - columns))
    means: NDArray[np.float64] = sums / sizes
    return means


def _patterns(axes: Axes, mask: MaskPicture, colour: str, most: int) -> None:
    """The first kernels, R x S squares each, a gap between them."""
    from matplotlib.colors import ListedColormap

    k, c = (min(most, n) for n in mask.corner_KCRS.shape[:2])
    R, S = mask.window
    tiles = mask.corner_KCRS[:k, :c].transpose(0, 2, 1, 3).reshape(k * R, c * S)
    _dress(axes)
    axes.imshow(tiles, cmap=ListedColormap(["none", colour]), vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    axes.hlines([R * i - 0.5 for i in range(1, k)], -0.5, c * S - 0.5, color=style.PAPER, linewidth=2.2)
    axes.vlines([S * i - 0.5 for i in range(1, c)], -0.5, k * R - 0.5, color=style.PAPER, linewidth=2.2)
    step = max(1, max(k, c) // 4)
    axes.set_xticks([(S - 1) / 2 + i * S for i in range(0, c, step)], [str(i) for i in range(0, c, step)])
    axes.set_yticks([(R - 1) / 2 + i * R for i in range(0, k, step)], [str(i) for i in range(0, k, step)])
    style.label(axes, x="input channel", title=f"the first {k} x {c}, weight by weight")


def _dress(axes: Axes) -> None:
    style.style_axes(axes, grid="")
    axes.set_facecolor(_DEAD)  # and dead weights are open, so that a dark page can make them dark
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _steps(colour: str, most: int) -> ListedColormap:
    """A colour map: empty for dead, then from a light tone to the full colour."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_hex

    ramp = LinearSegmentedColormap.from_list("alive", [_LITTLE if most > 1 else colour, colour])
    return ListedColormap(["none", *(to_hex(ramp(i / max(1, most - 1))) for i in range(most))])


def _shares(colour: str) -> LinearSegmentedColormap:
    """A colour map: the colour with the live share as its opacity."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    return LinearSegmentedColormap.from_list("share", [to_rgba(colour, 0.0), to_rgba(colour, 1.0)])
