"""Writes tables as HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] = (), notes: Iterable[str] = ()
) -> str:
    """A table with a caption, a last row in bold, and notes below; all text is escaped."""
    body = "".join(_row("td", row) for row in rows)
    foot = f"<tfoot>{_row('th', total)}</tfoot>" if total else ""
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"<table><caption>{escape(title)}</caption><thead>{_row('th', head)}</thead><tbody>{body}</tbody>{foot}</table>"
        f"{said}"
    )


def _row(cell: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"
