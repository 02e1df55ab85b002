"""Bar charts in one line of text, in plain characters where the terminal has no others."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = " ▁▂▃▄▅▆▇█"


def bar(share: float, width: int = 10, *, ascii_only: bool = False) -> str:
    """`share` of `width` cells filled; only exactly 0 is empty and only exactly 1 is full."""
    if ascii_only:
        cells = _inside(share, width)
        return "#" * cells + "." * (width - cells)
    eighths = _inside(share, 8 * width)
    full, rest = divmod(eighths, 8)
    return (_EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def columns(counts: Sequence[int]) -> str:
    """A bar chart of counts, one character of eight heights each, relative to the largest; only exactly 0 is empty."""
    most = max(counts, default=0)
    return "".join(_LEVELS[_inside(count / most, 8) if most else 0] for count in counts)


def _inside(share: float, steps: int) -> int:
    if share <= 0 or share >= 1:
        return 0 if share <= 0 else steps
    return min(max(1, round(share * steps)), max(1, steps - 1))
