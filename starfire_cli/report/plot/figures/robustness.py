"""Figure of accuracy over the size of the perturbation, a curve a network (paper, table 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from starfire_cli.records.plot import RobustCurve
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures._frame import empty, legend, percent
from starfire_cli.report.plot.groups import disambiguate, pretty_title
from starfire_cli.text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NOISE = (0, (1, 1.6))
_FEW = 8  # points, up to which intervals are bars; beyond, bands


class Point(Protocol):
    """Accuracy at one size, with its 95 % interval."""

    @property
    def eps(self) -> float:
        """Size of the perturbation."""

    @property
    def top1(self) -> float:
        """Accuracy as a fraction."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""

    @property
    def high(self) -> float:
        """Upper end of the interval."""


def robustness_figure(
    points: Mapping[str, Sequence[Point]],
    *,
    controls: Mapping[str, Sequence[Point]] | None = None,
    attack: str = "fgsm",
    norm: str = "linf",
    width: float = style.WIDE,
) -> Figure:
    """Accuracy with its 95 % interval over eps.

    Args:
        points: the rows of each network, by the name it gets in the legend; it begins with the method, for the colour.
        controls: rows to draw thin and dotted (noise of the same size), by name; a name of `points` gives its colour.
        attack: what made the images, for the axis.
        norm: how eps is measured, for the axis.
        width: inches.
    """
    return _panels({(attack, norm): (points, controls or {})}, width)


def attacks_figure(curves: Sequence[RobustCurve], *, width: float = style.WIDE) -> Figure:
    """Robustness from the result files of `attack`: one panel for each attack and set of images.

    Args:
        curves: at least one.
        width: inches; at NARROW or less the panels are stacked.
    """
    panels: dict[tuple[str, str], tuple[dict[str, Sequence[Point]], dict[str, Sequence[Point]]]] = {}
    kinds = list(dict.fromkeys((curve.attack, curve.norm, curve.images) for curve in curves))
    mixed = len({curve.images for curve in curves}) > 1
    for attack, norm, images in kinds:
        alike = [curve for curve in curves if (curve.attack, curve.norm, curve.images) == (attack, norm, images)]
        names = disambiguate(
            [pretty_title(curve.title) for curve in alike], [Path(curve.checkpoint).parent.name for curve in alike]
        )
        told = f"{attack}, {counted(images, 'image')}" if mixed else attack
        panels[told, norm] = (
            {name: curve.points for name, curve in zip(names, alike, strict=True)},
            {name: curve.noise for name, curve in zip(names, alike, strict=True)},
        )
    note = "Networks that were attacked on different numbers of images are not compared in one panel." if mixed else ""
    return _panels(panels, width, note)


def _panels(
    panels: Mapping[tuple[str, str], tuple[Mapping[str, Sequence[Point]], Mapping[str, Sequence[Point]]]],
    width: float,
    note: str = "",
) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    narrow = width <= style.NARROW
    columns = 1 if narrow or len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    figure = empty(width, rows * (2.8 if narrow else 3.0))
    grid = figure.subplots(rows, columns, squeeze=False)
    looks = _looks(list(dict.fromkeys(name for points, _ in panels.values() for name in points)))
    handles: dict[str, Any] = {}
    for axes, ((attack, norm), (points, controls)) in zip(grid.flat, panels.items(), strict=False):
        style.style_axes(axes)
        for name, rows_of in points.items():
            handles[name] = _curve(axes, rows_of, *looks[name])
            beside = controls.get(name, ())
            axes.plot(
                [r.eps for r in beside], [r.top1 for r in beside], color=looks[name][0], linestyle=_NOISE, linewidth=1
            )
        kind = "largest change of a pixel value" if norm == "linf" else "length of the change"
        inside = ", pixels in [0, 1]" if columns == 1 and not narrow else ""
        style.label(axes, x=f"eps ({kind}{inside})", y=style.literal_text(f"top-1 under {attack} (%)", 34))
        axes.set_ylim(bottom=0, top=1.02)
        percent(axes)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if columns == 1 else 4))
        sizes = {row.eps for rows_of in points.values() for row in rows_of}
        if len(sizes) == 1:
            axes.set_xlim(left=0, right=2 * max(sizes) or 0.1)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    if any(rows_of for _, controls in panels.values() for rows_of in controls.values()):
        handles["the same, noise of that size only"] = Line2D([], [], color=style.MUTED, linestyle=_NOISE, linewidth=1)
    legend(figure, list(handles.values()), list(handles), note=f"Bars and bands: 95 % intervals. {note}".strip())
    return figure


def _curve(axes: Axes, rows: Sequence[Point], colour: str, marker: str, line: Any) -> Any:
    sizes, accuracy = [r.eps for r in rows], [r.top1 for r in rows]
    (drawn,) = axes.plot(
        sizes,
        accuracy,
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=1.6,
        linestyle=line,
        zorder=3,
        clip_on=False,  # at 0 % half of a marker is below the axis
    )
    if len(rows) <= _FEW:
        axes.vlines(sizes, [r.low for r in rows], [r.high for r in rows], color=colour, linewidth=1.2, zorder=2.5)
    else:
        axes.fill_between(sizes, [r.low for r in rows], [r.high for r in rows], color=colour, alpha=0.18, linewidth=0)
    return drawn


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str, Any]]:
    """Line styles: colour by method; marker, dashes and tone tell networks of one method apart."""
    looks = {}
    for number, name in enumerate(names):
        alike = [other for other in names if style.method_colour(other) == style.method_colour(name)]
        place = alike.index(name)
        colour = style.shades(style.method_colour(name), len(alike))[place]
        looks[name] = (colour, style.MARKERS[number % len(style.MARKERS)], style.LINES[place % len(style.LINES)])
    return looks
