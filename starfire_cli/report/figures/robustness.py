"""Accuracy over the size of the perturbation, a curve a network: the picture of table 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from starfire_cli.report import style
from starfire_cli.report.figures._frame import empty, legend, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
        """Lower end of its interval."""

    @property
    def high(self) -> float:
        """Upper end."""


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
    figure = empty(width, 3.1 if width > style.NARROW else 2.9)
    draw_robustness(figure, figure.add_subplot(), points, controls=controls, attack=attack, norm=norm)
    return figure


def draw_robustness(
    figure: Figure,
    axes: Axes,
    points: Mapping[str, Sequence[Point]],
    *,
    controls: Mapping[str, Sequence[Point]] | None,
    attack: str,
    norm: str,
) -> None:
    """The same into axes that are there; the legend goes below all of the figure."""
    from matplotlib.lines import Line2D

    style.dress(axes)
    handles: list[Any] = []
    labels = list(points)
    looks = _looks(labels)
    for name, rows in points.items():
        colour, marker, line = looks[name]
        handles.append(_curve(axes, rows, colour, marker, line))
        beside = (controls or {}).get(name, ())
        axes.plot([r.eps for r in beside], [r.top1 for r in beside], color=colour, linestyle=(0, (1, 1.6)), linewidth=1)
    if any((controls or {}).get(name) for name in points):
        handles.append(Line2D([], [], color=style.MUTED, linestyle=(0, (1, 1.6)), linewidth=1))
        labels.append("the same, noise of that size only")
    kind = "largest change of a pixel value" if norm == "linf" else "length of the change"
    if figure.get_figwidth() <= style.NARROW:
        kind = kind.replace(" of a pixel value", "").replace("length of the change", "length")
    style.label(axes, x=f"eps ({kind}, pixels in [0, 1])", y=style.plain(f"top-1 under {attack} (%)"))
    axes.set_ylim(bottom=0, top=1.02)
    percent(axes)
    legend(figure, handles, labels, note="Bars and bands: 95 % intervals.")


def _curve(axes: Axes, rows: Sequence[Point], colour: str, marker: str, line: Any) -> Any:
    sizes, accuracy = [r.eps for r in rows], [r.top1 for r in rows]
    (drawn,) = axes.plot(
        sizes, accuracy, color=colour, marker=marker, markersize=4.5, linewidth=1.6, linestyle=line, zorder=3
    )
    if len(rows) <= _FEW:
        axes.vlines(sizes, [r.low for r in rows], [r.high for r in rows], color=colour, linewidth=1.2, zorder=2.5)
    else:
        axes.fill_between(sizes, [r.low for r in rows], [r.high for r in rows], color=colour, alpha=0.18, linewidth=0)
    return drawn


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str, Any]]:
    """Colour by method; marker, dashes and tone tell networks of one method apart."""
    looks = {}
    for number, name in enumerate(names):
        alike = [other for other in names if style.method_colour(other) == style.method_colour(name)]
        place = alike.index(name)
        colour = style.shades(style.method_colour(name), len(alike))[place]
        looks[name] = (colour, style.MARKERS[number % len(style.MARKERS)], style.LINES[place % len(style.LINES)])
    return looks
