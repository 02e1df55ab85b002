"""Elements that figures share: an empty figure, a legend that never covers data, percent axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starfire_cli.report.plot import style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def empty(width: float, height: float) -> Figure:
    """An empty figure of that many inches on white, with constrained layout."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    return Figure(figsize=(width, height), facecolor=style.PAPER, layout=engine)


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], *, note: str = "") -> None:
    """Puts all entries below the axes, in as many columns as fit, under a line of text; the figure grows to fit."""
    if not handles and not note:
        return
    width = figure.get_figwidth()
    shown = [style.literal_text(text, 60 if width > style.NARROW else 40) for text in labels]
    longest = max(map(len, shown), default=1)
    columns = max(1, min(len(shown), int((width - 0.2) / (0.062 * longest + 0.5))))
    rows = -(-len(shown) // columns)
    lines = _wrapped(note, int((width - 0.3) / 0.058))
    made = figure.legend(
        handles,
        shown,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=style.SMALL,
        labelcolor=style.INK,
        title="\n".join(lines) or None,
        title_fontsize=style.SMALL,
        alignment="left",
        handlelength=2.6,
        columnspacing=1.6,
    )
    made.get_title().set_color(style.MUTED)
    figure.set_figheight(figure.get_figheight() + 0.165 * (rows + len(lines)) + 0.12)


def percent(axes: Axes, which: str = "y") -> None:
    """Formats an axis of fractions as percent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


def whole(axes: Axes, which: str = "x") -> None:
    """Sets ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    (axes.xaxis if which == "x" else axes.yaxis).set_major_locator(
        MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )


def blank_handle() -> Any:
    """A legend entry without a mark."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none")


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return [style.literal_text(line, 400) for part in text.splitlines() for line in textwrap.wrap(part, max(20, width))]
