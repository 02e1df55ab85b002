"""Tables as HTML for notebooks and as plain text for consoles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, kw_only=True)
class RecordTable:
    """A record as a table.

    Args:
        title: the line above it.
        head: the columns' names.
        rows: texts, one a column; in plain text, columns of numbers go to the right, but the first.
        total: the last row, set off from the others; may be empty.
        notes: sentences below it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] = ()
    notes: Sequence[str] = ()

    def html(self) -> str:
        """The table for a notebook, with a caption; all text is escaped."""
        body = "".join(_row("td", row) for row in self.rows)
        foot = f"<tfoot>{_row('th', self.total)}</tfoot>" if self.total else ""
        said = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return (
            f"<table><caption>{escape(self.title)}</caption><thead>{_row('th', self.head)}</thead>"
            f"<tbody>{body}</tbody>{foot}</table>{said}"
        )

    def text(self) -> str:
        """The table in plain text, a line for each row and note."""
        lines = [*self.rows, *([self.total] if self.total else [])]
        widths = [max(map(len, column)) for column in zip(self.head, *lines, strict=True)]
        right = [place > 0 and _numeric(column) for place, column in enumerate(zip(*lines, strict=True))]
        right = right or [False] * len(self.head)
        shown = [
            "  ".join(text.rjust(width) if to_right else text.ljust(width) for text, width, to_right in cells).rstrip()
            for cells in (zip(line, widths, right, strict=True) for line in (self.head, *lines))
        ]
        return "\n".join([self.title, *shown, *self.notes])


def _row(cell: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"


def _numeric(texts: Iterable[str]) -> bool:
    filled = [text for text in texts if text]
    return bool(filled) and all(text.lstrip("+-")[:1].isdigit() for text in filled)
