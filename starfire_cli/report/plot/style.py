"""Colours, lines and sizes of figures, the same for one thing everywhere, for white paper and dark pages.

The colours keep a contrast of 3 or more against white and near-black, and differ for the colour-blind as well
(tests/report/plot/test_plot_style.py measures both). Nothing here touches matplotlib's global settings.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1b1e23"
MUTED = "#70757e"
GRID = "#d5d9df"
SHADE = "#e6e9ed"
PAPER = "#ffffff"
"""The page's own colours; a page with a dark mode replaces just these (report/html.py)."""

METHODS = {"dense": INK, "window": "#2060e8", "ck": "#bf3f12", "intra": "#12a57c", "inter": "#da45b4"}
OTHERS = {
    "rigl": "#9d954f",
    "set": "#915279",
    "gmp": "#c68203",
    "dsr": "#3596f9",
    "static": "#a05144",
    "snfs": "#f65778",
    "granet": "#067ea4",
    "srigl": "#8a46b8",
    "deepr": "#7631ff",
    "snip": "#908fa0",
    "narang": "#3c7d1f",
    "nest": "#fe373c",
    "lottery": "#fc2cde",
    "prunetrain": "#69815e",
    "slimming": "#ac03dc",
    "ssl": "#847ed6",
    "sss": "#a5428f",
    "lebedev": "#7a5f62",
    "ac-dc": "#ab7034",
    "deep-compression": "#6a85c2",
    "mao": "#e053fa",
    "l1-filter": "#5e9357",
    "thinet": "#d05c8f",
    "lasso-channel": "#a23bcf",
    "pfa": "#029539",
    "mix": "#b18175",
}
"""Colours of the other methods: each as far from all above it as the limits leave room for, for every reader."""

SPARE = ("#9a4bf9", "#c9247e", "#00764a", "#cb1327")
"""For methods that have no colour of their own yet, by name."""

WRITTEN = {
    **{name: name.upper() for name in ("ck", "gmp", "dsr", "pfa", "set", "snfs", "snip", "ssl", "sss")},
    **{"ac-dc": "AC/DC", "deepr": "DeepR", "granet": "GraNet", "nest": "NeST", "prunetrain": "PruneTrain"},
    **{
        "rigl": "RigL",
        "srigl": "SRigL",
        "thinet": "ThiNet",
        "lasso-channel": "LASSO channels",
        "l1-filter": "L1 filters",
    },
}
"""The names of methods as their authors write them."""

KINDS = {
    "3x3": ("#5562c9", "s"),
    "window": ("#5562c9", "P"),
    "depthwise": ("#4f9a94", "X"),
    "1x1": ("#c08a10", "o"),
    "downsample": ("#b5305f", "^"),
    "linear": ("#8d939b", "D"),
}
"""Layer kinds: colour and marker; window is any other R x S."""

MARKERS = "os^DvPX<>*hdp8x+1234"
LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
SIZE = 8.5
SMALL = 7.5
WIDE = 7.2
"""Inches: the text width of A4 or letter; at 5 or less, pictures are laid out for a column or a phone."""
NARROW = 5.0

_LIGHTEST, _DARKEST = 0.30, 0.135  # luminance: 3:1 against white, 3:1 against near-black


def method_colour(spec: str) -> str:
    """The colour of a method (`window`, `window:max_nonzero=2` or `window 0.6`), the same everywhere."""
    name = method_name(spec)
    return METHODS.get(name) or OTHERS.get(name) or SPARE[sum(map(ord, name)) % len(SPARE)]


def method_marker(spec: str) -> str:
    """The marker of a method, the same everywhere; of the first 20 methods no two are alike."""
    names = [*METHODS, *OTHERS]
    name = method_name(spec)
    return MARKERS[(names.index(name) if name in names else sum(map(ord, name))) % len(MARKERS)]


def method_name(spec: str) -> str:
    """The method's name in `window:max_nonzero=2` or `window 0.6`."""
    start = re.match(r"[\w-]+", spec)
    return start[0].lower() if start else spec


def shades(colour: str, count: int) -> list[str]:
    """`count` tones of one colour, dark to light, all of them legible on white and on near-black."""
    if count <= 1 or colour == INK:
        return [colour] * count
    dark, light = _towards(colour, 0.0, _DARKEST), _towards(colour, 1.0, _LIGHTEST)
    return [_hex([d + (w - d) * i / (count - 1) for d, w in zip(dark, light, strict=True)]) for i in range(count)]


def style_axes(axes: Axes, *, grid: str = "y") -> None:
    """Styles axes: two spines, muted ticks, a faint grid behind the data."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=SMALL, color=MUTED, length=3, width=0.8)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]


def label(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Sets axis labels, and a title on the left."""
    axes.set_xlabel(x, fontsize=SIZE, color=INK)
    axes.set_ylabel(y, fontsize=SIZE, color=INK)
    if title:
        axes.set_title(title, fontsize=SIZE, color=INK, loc="left", pad=6)


def literal_text(text: str, limit: int = 44) -> str:
    """`text` as literal text for matplotlib: no formulas, no line ends, the middle of long names left out."""
    safe = "".join(c if c.isprintable() else "?" for c in text)
    return shorten(safe, limit).replace("$", r"\$")


def shorten(text: str, limit: int) -> str:
    """Shortens a long name in the middle: `layer1.0.co…nv3.weight`."""
    if len(text) <= limit:
        return text
    head = (limit - 1 + 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of `#rrggbb`."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _towards(colour: str, end: float, luminance_wanted: float) -> list[float]:
    """The mixture of `colour` with white (1) or black (0) that has the luminance, or `colour` if it is past it."""
    start = _rgb(colour)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        mixed = [c + (end - c) * middle for c in start]
        short = luminance(_hex(mixed)) < luminance_wanted
        if short == (end == 1.0):
            low = middle
        else:
            high = middle
    return [c + (end - c) * low for c in start]


def _rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _hex(rgb: list[float]) -> str:
    return "#" + "".join(f"{round(255 * min(1.0, max(0.0, c))):02x}" for c in rgb)
