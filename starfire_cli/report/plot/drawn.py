"""The figures that `starfire.plot` returns, by kind; a notebook shows them."""

from __future__ import annotations

import base64
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from starfire_cli.errors import BadOption
from starfire_cli.report.plot.saving import DPI, render, save_figures

_MOST_DPI = 2400

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Figures(dict[str, "Figure"]):
    """matplotlib figures by kind.

    Attributes:
        notes: what was left out and why, a sentence each.
    """

    def __init__(self, figures: dict[str, Figure], notes: tuple[str, ...] = ()) -> None:
        super().__init__(figures)
        self.notes = notes

    def save(self, path: str | PathLike[str], *, dpi: int = DPI) -> list[Path]:
        """Write them, and return the files: one PDF, or one PNG or SVG each, `path-KIND.png` where there are several.

        Raises StarfireError where they cannot be written, and BadOption for what is no path or no resolution.
        """
        if not isinstance(path, str | PathLike):
            raise BadOption(f"path is a {type(path).__name__}; a path works, such as 'figures.pdf'")
        if isinstance(dpi, bool) or not isinstance(dpi, int | float) or not 1 <= dpi <= _MOST_DPI:
            raise BadOption(f"dpi={dpi!r} is no number of dots an inch from 1 to {_MOST_DPI}")
        return save_figures(self, Path(path), dpi=dpi, option="path")

    def _repr_html_(self) -> str:
        pictures = [base64.b64encode(render(figure, "png", dpi=100)).decode() for figure in self.values()]
        shown = "".join(
            f'<img alt="{escape(kind)}" src="data:image/png;base64,{data}"/>'
            for kind, data in zip(self, pictures, strict=True)
        )
        return shown + "".join(f"<p>{escape(note)}</p>" for note in self.notes)
