"""Display of `starfire compare`: a bar a cell at a terminal, plain lines in a pipe, and one table of all methods."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from starfire_cli.records.compare import (
    CellDone,
    CellFailed,
    CellFigures,
    CellProgress,
    CompareCell,
    Compared,
    CompareNote,
    CompareRecord,
    CompareStarted,
    CompareStopped,
    MethodRow,
    PairedDifference,
)
from starfire_cli.report.console import open_console
from starfire_cli.report.inspect import show_table
from starfire_cli.text import counted, printable, size_text, some

_EVERY = 30.0  # seconds between lines of one cell where there is no terminal
_KILO = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def display(records: Iterable[CompareRecord], *, quiet: bool = False, to_stderr: bool = False) -> Compared | int:
    """Shows records as they come; returns the end, or the number of the signal that stopped it.

    Args:
        records: of `workflows.compare.run.compare`.
        quiet: show the table and problems only.
        to_stderr: where stdout is kept for JSON.
    """
    console = open_console(stderr=to_stderr)
    screen = _Screen(console, quiet)
    end: Compared | int = 0
    try:
        for record in records:
            match record:
                case CompareStarted():
                    screen.started(record)
                case CompareNote():
                    screen.say(record.text)
                case CellProgress():
                    screen.progress(record)
                case CellDone():
                    screen.done(record.cell, record.figures)
                case CellFailed():
                    screen.failed(record)
                case CompareStopped():
                    screen.close()
                    name = {2: "interrupted (Ctrl-C)", 15: "terminated (SIGTERM)"}.get(record.signal, "stopped")
                    cells = f"{record.done} of {counted(record.total, 'cell')} done, and those under way are saved"
                    screen.say(f"{name}; {cells}. {stopped_line(record.command)}")
                    end = record.signal
                case Compared():
                    screen.close()
                    end = record
                    show(console, record)
    finally:
        screen.close()
    return end


def stopped_line(command: str) -> str:
    """The way to go on."""
    return f"The same command goes on: {printable(command, 2000)}"


def show(console: Console, end: Compared) -> None:
    """Shows the table, how it is to be read, and cells that failed."""
    if end.rows:
        columns = _columns(end)
        wanted = [(heading, right, order) for heading, right, order, _ in columns]
        shown = show_table(console, wanted, [[cells[i] for *_, cells in columns] for i in range(len(end.rows))])
        for line in _legend(end, [columns[i][0] for i in range(len(columns)) if i not in shown]):
            console.print(Text(printable(line, 2000)))
    if end.failed:
        names = some([failed.cell.name for failed in end.failed], 6)
        console.print(Text(f"{counted(len(end.failed), 'cell')} failed, for the reasons above: {printable(names)}"))
        console.print(Text("the same command tries again; a cell whose folder is removed begins anew"))


class _Screen:
    def __init__(self, console: Console, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._progress: Progress | None = None
        self._tasks: dict[CompareCell, TaskID] = {}
        self._all: TaskID | None = None
        self._told: dict[CompareCell, float] = {}
        self._finished: set[CompareCell] = set()
        self._total = 0

    def started(self, record: CompareStarted) -> None:
        self._total, self._finished = len(record.cells), set(record.done)
        there = f", {len(record.done)} of them done" if record.done else ""
        self.say(f"{counted(len(record.cells), 'cell')}{there}; folder {record.folder}")
        for note in record.notes:
            self.say(note)
        if self._quiet or not self._console.is_terminal or len(record.done) == len(record.cells):
            return
        roomy = self._console.width >= 100
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None if roomy else 12),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            expand=roomy,
        )
        self._progress.start()
        self._all = self._progress.add_task(
            "all cells", total=self._total, completed=len(self._finished), unit="cells", text=""
        )

    def say(self, line: str) -> None:
        if not self._quiet:
            self._console.print(Text(printable(line, 2000)))

    def progress(self, record: CellProgress) -> None:
        cell = record.cell
        if self._progress is None:
            now = time.monotonic()
            if cell not in self._told:
                self.say(f"{cell.name}: begins")
            elif now - self._told[cell] < _EVERY:
                return
            else:
                self.say(f"{cell.name}: {record.done:.3g} of {record.total:g} epochs, {record.text}")
            self._told[cell] = now
            return
        if cell not in self._tasks:
            self._tasks[cell] = self._progress.add_task(
                printable(cell.name, 40), total=record.total, unit="epochs", text=""
            )
        self._progress.update(self._tasks[cell], completed=record.done, total=record.total, text=record.text)

    def done(self, cell: CompareCell, figures: CellFigures) -> None:
        self._remove(cell)
        if cell in self._finished:  # its latency alone was missing
            return
        self._finished.add(cell)
        if self._progress is not None and self._all is not None:
            self._progress.update(self._all, completed=len(self._finished))
        self.say(
            f"{cell.name}: top-1 {figures.top1:.2%}, sparsity {figures.sparsity_prunable:.4f}, {figures.seconds:.1f} s "
            f"({len(self._finished)} of {self._total})"
        )

    def failed(self, record: CellFailed) -> None:
        self._remove(record.cell)
        self._console.print(Text(f"{record.cell.name}: failed: {printable(record.problem, 1000)}", style="bold yellow"))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _remove(self, cell: CompareCell) -> None:
        if self._progress is not None and cell in self._tasks:
            self._progress.remove_task(self._tasks.pop(cell))


Column = tuple[str, bool, int, list[str]]
"""Heading, whether numbers go to the right, how much it is wanted (less is more), and a cell for each row."""


def _columns(end: Compared) -> list[Column]:
    rows = end.rows
    paired = any(row.top1_difference is not None for row in rows)
    seeds = {len(row.figures) for row in rows}
    columns: list[Column] = [("method", False, 0, [row.title for row in rows])]
    if len(seeds) > 1:
        columns.append(("seeds", True, 9, [str(len(row.figures)) for row in rows]))
    columns.append(("top-1\n%", True, 1, [f"{100 * (row.mean('top1') or 0):.2f}" for row in rows]))
    if paired:
        columns.append(("minus dense\npoints", True, 2, [difference_text(row.top1_difference) for row in rows]))
    columns.append(("sparsity\n", True, 3, [f"{row.mean('sparsity_prunable') or 0:.4f}" for row in rows]))
    if len({next(iter(row.figures.values())).epochs for row in rows}) > 1:
        columns.append(("epochs\n", True, 4, [f"{row.mean('epochs') or 0:g}" for row in rows]))
    columns += _numbers(rows, "training_flops", "train", "FLOP", 5)
    columns += _numbers(rows, "inference_flops", "infer", "FLOP", 5)
    columns.append(("time\ns", True, 10, [f"{row.mean('seconds') or 0:.0f}" for row in rows]))
    if any(row.mean("packed_bytes") for row in rows):
        packed = [row.mean("packed_bytes") for row in rows]
        columns.append(("packed\n", True, 6, ["" if size is None else size_text(size) for size in packed]))
    if any(row.latency for row in rows):
        columns.append(("CPU ms\nsparse", True, 8, [_ms(row.latency.sparse if row.latency else None) for row in rows]))
        columns.append(("CPU ms\ndense", True, 11, [_ms(row.latency.dense if row.latency else None) for row in rows]))
    for place, label in enumerate(end.eps):
        if all(row.robust(label) is None for row in rows):
            continue
        order = 7 if place == 0 else 12 + 2 * place
        shown = [row.robust(label) for row in rows]
        columns.append((f"FGSM {label}\n%", True, order, ["" if x is None else f"{100 * x:.2f}" for x in shown]))
        if paired:
            apart = [difference_text(row.attack_differences.get(label)) for row in rows]
            columns.append(("minus dense\npoints", True, 13 + 2 * place, apart))
    return columns


def difference_text(found: PairedDifference | None) -> str:
    """`-0.56 ± 0.42` in points; without the interval where there is but one seed; "" for none."""
    if found is None:
        return ""
    half = "" if found.half_width is None else f" ± {100 * found.half_width:.2f}"
    return f"{100 * found.mean:+.2f}{half}"


def unit_of(values: Sequence[float | None]) -> tuple[float, str]:
    """The unit in which the largest of the values is 1 or more: (1e9, "G")."""
    largest = max((value for value in values if value is not None), default=0)
    return next(((size, name) for size, name in _KILO if largest >= size), (1.0, ""))


def _numbers(rows: Sequence[MethodRow], name: str, heading: str, unit: str, order: int) -> list[Column]:
    values = [row.mean(name) for row in rows]
    if all(value is None for value in values):
        return []
    size, prefix = unit_of(values)
    cells = ["" if value is None else f"{value / size:.3g}" for value in values]
    return [(f"{heading}\n{prefix}{unit}", True, order, cells)]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f}"


def _legend(end: Compared, left_out: Sequence[str]) -> list[str]:
    rows = end.rows
    lines = []
    if any(row.top1_difference is not None and row.top1_difference.half_width is not None for row in rows):
        lines.append("minus dense: the mean over seeds of the differences at the same seed, ± half its 95 % interval")
    elif any(row.top1_difference is not None for row in rows):
        lines.append("minus dense: of one seed, so there is no interval")
    lines += [
        f"{row.title}: not timed by live weights: {row.latency.problem}"
        for row in rows
        if row.latency is not None and row.latency.problem is not None
    ]
    if left_out:
        names = ", ".join(dict.fromkeys(heading.replace("\n", " ").strip() for heading in left_out))
        lines.append(f"no room for: {names}; {end.folder / 'compare.json'} has everything")
    return lines
