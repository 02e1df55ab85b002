"""How a table of the paper is written: for a terminal, as Markdown, LaTeX (booktabs) or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from starfire_cli.errors import unknown
from starfire_cli.report.plot.table_cells import Cell, PaperTable, TableRow

FORMATS = ("terminal", "markdown", "latex", "csv")
_SHORT = {"md": "markdown", "tex": "latex", "term": "terminal", "text": "terminal"}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}


def format_name(text: str) -> str:
    """`md` and `markdown` are the same. Raises BadOption that lists the formats."""
    name = _SHORT.get(text.lower(), text.lower())
    if name not in FORMATS:
        raise unknown("--format", text, FORMATS)
    return name


def show(console: Console, tables: Sequence[PaperTable]) -> None:
    """For people, at a terminal or in a pipe."""
    for number, table in enumerate(tables):
        if number:
            console.print()
        console.print(heading(table), markup=False, style="bold")
        drawn = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for place, column in enumerate(_columns(table)):
            drawn.add_column(column, justify="right" if place else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(Text(_named(row)), *map(_text, row.cells))
        console.print(drawn)
        for note in table.notes:
            console.print(note, markup=False)


def write(tables: Sequence[PaperTable], form: str) -> str:
    """As Markdown, LaTeX or CSV, or as what `show` would print into a file; ends with a line end."""
    if form == "csv":
        return _csv(tables)
    if form == "terminal":
        memory = io.StringIO()
        show(Console(file=memory, width=400, highlight=False), tables)
        return "".join(f"{line.rstrip()}\n" for line in memory.getvalue().splitlines())
    return "\n".join(map(_markdown if form == "markdown" else _latex, tables))


def _markdown(table: PaperTable) -> str:
    lines = [f"**{_md(heading(table))}**", ""]
    lines.append("| " + " | ".join(map(_md, _columns(table))) + " |")
    lines.append("|" + "|".join(["---", *["---:"] * (len(table.columns) - 1)]) + "|")
    lines += ["| " + " | ".join([_md(_named(row)), *map(_text, row.cells)]) + " |" for row in table.rows]
    if table.notes:
        lines += ["", " ".join(map(_md, table.notes))]
    return "\n".join(lines) + "\n"


def _latex(table: PaperTable) -> str:
    # Needs \usepackage{booktabs}. Said as a comment, since this is only a part of a document.
    lines = [r"% \usepackage{booktabs}", *(f"% {_tex(note)}" for note in table.notes)]
    lines += [r"\begin{table}", r"\centering", rf"\caption{{{_tex(f'{table.title} ({table.setup})')}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    if table.spans:
        lines.append(
            " & ".join(rf"\multicolumn{{{n}}}{{c}}{{{_tex(t)}}}" if t else "" for t, n in table.spans) + r" \\"
        )
    lines += [" & ".join(map(_tex, table.columns)) + r" \\", r"\midrule"]
    for row in table.rows:
        texts = [cell.text(minus="$-$", plus_minus=r"$\pm$") if cell else "--" for cell in row.cells]
        lines.append(" & ".join([_tex(_named(row)).replace("±", r"$\pm$"), *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _csv(tables: Sequence[PaperTable]) -> str:
    """Numbers for other programs: percent, or epochs; columns for what only some cells have."""
    rows: list[dict[str, str | float]] = []
    columns: dict[str, None] = {"setup": None, "row": None}
    for table in tables:
        heads = ["own", *_columns(table)[1:]]
        for row in table.rows:
            numbers: dict[str, str | float] = {"setup": table.setup, "row": row.name}
            for column, cell in zip(heads, (row.own, *row.cells), strict=True):
                numbers |= _numbers(column, cell)
            rows.append(numbers)
        for column in heads:
            wanted = (column, f"{column} sd", f"{column} runs", f"{column} difference")
            columns |= dict.fromkeys(c for c in wanted if any(c in row for row in rows))
    memory = io.StringIO()
    writer = csv.DictWriter(memory, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return memory.getvalue()


def _numbers(column: str, cell: Cell | None) -> dict[str, float]:
    if cell is None:
        return {}
    scale = 1 if cell.unit == "epoch" else 100
    numbers: dict[str, float] = {column: round(scale * cell.mean, 6), f"{column} runs": cell.runs}
    if cell.spread is not None:
        numbers[f"{column} sd"] = round(scale * cell.spread, 6)
    if cell.difference is not None:
        numbers[f"{column} difference"] = round(scale * cell.difference, 6)
    return numbers


def _columns(table: PaperTable) -> list[str]:
    """One line of headings: what spans several columns is put before each of them."""
    above = [text for text, columns in table.spans for _ in range(columns)] or [""] * len(table.columns)
    return [f"{span}: {column}" if span else column for span, column in zip(above, table.columns, strict=True)]


def heading(table: PaperTable) -> str:
    """`Table 1: top-1 accuracy (%) after 100 epochs (resnet50 on imagenet, 100 epochs in all)`."""
    return f"Table {table.number}: {table.title} ({table.setup})"


def _named(row: TableRow) -> str:
    return f"{row.name} ({row.own.text()})" if row.own else row.name


def _text(cell: Cell | None) -> str:
    return cell.text() if cell else "-"


def _md(text: str) -> str:
    return re.sub(r"([|*_`<>\\])", r"\\\1", text)


def _tex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)
