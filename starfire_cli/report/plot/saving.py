"""Saves figures atomically and reproducibly to the byte, as PNG, SVG or PDF by the name's ending."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starfire_cli.errors import BadOption
from starfire_cli.formats.atomic import atomic_write
from starfire_cli.formats.overwriting import refuse_overwriting
from starfire_cli.report.plot import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")
DPI = 200
SHOWN = "what is shown"
"""The noun for files that are drawn, in the error where they would be written over."""


def check_target(out: Path, option: str = "--out") -> None:
    """Raises BadOption, before any work is done, if no figure can have that name; `option` is what it was given as."""
    if out.suffix.lower() not in ENDINGS:
        raise BadOption(f"{option} {out} does not end in {', '.join(ENDINGS)}; the ending says what to write")
    if not out.parent.is_dir():
        raise BadOption(f"{option} {out}: there is no folder {out.parent}")


def save_figures(
    figures: Mapping[str, Figure],
    out: Path,
    *,
    dpi: int = DPI,
    several: bool = False,
    read: Sequence[Path] = (),
    option: str = "--out",
) -> list[Path]:
    """Writes figures and returns the files: one PDF with a page each; PNG and SVG one file each, `out-NAME.png`.

    Args:
        figures: by kind; a single one is called `out` itself (unless `several`).
        out: with a known ending.
        dpi: of PNG, and of masks in the others.
        several: name files by their kind in any case.
        read: files that are shown, which are not written over.
        option: as which `out` was given, for errors.

    Raises:
        BadOption, StarfireError: nothing can be written there.
    """
    check_target(out, option)
    ending = out.suffix.lower()
    if ending == ".pdf":
        refuse_overwriting(out, read, option=option, noun=SHOWN)
        _write(out, _pdf(list(figures.values()), dpi))
        return [out]
    alone = len(figures) == 1 and not several
    paths = [out if alone else out.with_name(f"{out.stem}-{name}{out.suffix}") for name in figures]
    for path in paths:
        refuse_overwriting(path, read, option=option, noun=SHOWN)
    for path, figure in zip(paths, figures.values(), strict=True):
        _write(path, render(figure, ending[1:], dpi=dpi))
    return paths


def render(figure: Figure, kind: str, *, dpi: int = DPI, paper: str | None = style.PAPER) -> bytes:
    """One figure as bytes; with `paper` None the background is transparent."""
    import matplotlib

    # Dates and random ids would make each file of the same picture a different one.
    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    memory = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "starfire", "svg.fonttype": "path"}), _suppress_warnings():
        figure.savefig(memory, format=kind, dpi=dpi, facecolor=paper or "none", metadata=metadata)
    return memory.getvalue()


def _pdf(figures: list[Figure], dpi: int) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages

    memory = io.BytesIO()
    with (  # TrueType: publishers refuse the Type 3 fonts that matplotlib writes by itself
        matplotlib.rc_context({"pdf.fonttype": 42}),
        _suppress_warnings(),
        PdfPages(memory, metadata={"CreationDate": None}) as pages,
    ):
        for figure in figures:
            pages.savefig(figure, dpi=dpi, facecolor=style.PAPER)
    return memory.getvalue()


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path, need=len(data)) as file:
        file.write(data)


@contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Suppresses matplotlib's warnings about missing glyphs and squeezed panels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield
