"""Display of `starfire attack`: a bar while it runs, then accuracy by size, and two networks side by side."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from starfire_cli.records.attack import (
    AttackProgress,
    AttackRecord,
    AttackReport,
    AttackStarted,
    NetworkResult,
    PairPoint,
    RobustPoint,
)
from starfire_cli.report.console import open_console

_WIDE = 76  # columns that the whole table takes; in less, top-5 and speed are left to the JSON
_EVERY = 30.0  # seconds between lines where there is no terminal
_SURE = 0.05


def display(records: Iterable[AttackRecord], *, to_stderr: bool, quiet: bool = False) -> AttackReport:
    """Shows the records as they come, and returns the last one.

    Args:
        records: of `workflows.attack.attack`.
        to_stderr: where stdout is kept for JSON.
        quiet: show warnings only.
    """
    console = open_console(stderr=to_stderr)
    bar = _Bar(console, quiet)
    report: AttackReport | None = None
    try:
        for record in records:
            match record:
                case AttackStarted():
                    _show_start(console, record, quiet)
                case AttackProgress():
                    bar.update(record)
                case AttackReport():
                    report = record
    finally:
        bar.close()
    assert report is not None, "a workflow ends with its report or raises"
    if not quiet:
        show(console, report)
    for result in report.results:
        for warning in result.warnings:
            console.print(f"warning: {names(report)[result.file]}: {warning}", markup=False, style="yellow")
    return report


def show(console: Console, report: AttackReport) -> None:
    """Shows the tables of a finished attack."""
    called = names(report)
    for result in report.results:
        console.print()
        console.print(f"{called[result.file]}  {result.path}", markup=False, style="bold")
        console.print(_table(result, console.width, report.attack))
    if report.pairs:
        first, second = (called[result.file] for result in report.results)
        console.print()
        console.print(f"{first} less {second}, image by image", markup=False, style="bold")
        console.print(_pairs(report.pairs, first, second, console.width))
        console.print(verdict(report.pairs, first, second), markup=False)
    if any(result.transfer for result in report.results):
        console.print()
        console.print("Who is right on images made against whom", style="bold")
        console.print(_transfer(report, called))
    console.print()
    if report.attack.partition(":")[0] == "fgsm":
        console.print("FGSM is a single step: what withstands it may still fall to --attack pgd.", markup=False)
    for note in report.notes:
        console.print(note, markup=False)
    for path in [*(result.file for result in report.results), *report.saved]:
        console.print(f"written {path}", markup=False)


def names(report: AttackReport) -> dict[object, str]:
    """Each network's name, by its result file: its title, with the file's name where two titles are alike."""
    titles = [result.title for result in report.results]
    if len(set(titles)) == len(titles):
        return {result.file: result.title for result in report.results}
    return {
        result.file: f"{result.title} ({'/'.join((*result.path.parts[-2:-1], result.path.name))})"
        for result in report.results
    }


def verdict(pairs: tuple[PairPoint, ...], first: str, second: str) -> str:
    """The comparison in a sentence, with its error bar."""
    attacked = [row for row in pairs if row.eps] or list(pairs)
    worse = [row.label for row in attacked if row.p_mid < _SURE and row.difference < 0]
    better = [row.label for row in attacked if row.p_mid < _SURE and row.difference > 0]
    lowest = min(attacked, key=lambda row: row.low)
    bound = f"the lowest end of an interval is {100 * lowest.low:+.2f} points (eps {lowest.label})"
    if not worse and not better:
        return f"No difference seen: {first} is as robust as {second} as far as these images can tell; {bound}."
    said = []
    if worse:
        said.append(f"less robust than {second} at eps {', '.join(worse)}")
    if better:
        said.append(f"more robust than {second} at eps {', '.join(better)}")
    return f"{first} is {' and '.join(said)} (McNemar p < {_SURE:g}); {bound}."


def _show_start(console: Console, record: AttackStarted, quiet: bool) -> None:
    if quiet:
        return
    for note in record.notes:
        console.print(note, markup=False)
    console.print(
        f"{record.attack} on {record.images:,} validation images of {record.data}, {record.batch_size} at a time",
        markup=False,
    )


def _table(result: NetworkResult, width: int, attack: str) -> Table:
    wide = width >= _WIDE + 9 * (len(result.controls) - 1)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("eps", no_wrap=True)
    controls = list(result.controls)
    headings = ["top-1", "95 % interval", *(["top-5"] if wide else []), "drop", *controls, *(["img/s"] if wide else [])]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(result.points):
        beside = [_percent(result.controls[name][number].top1) if row.eps else "" for name in controls]
        table.add_row(
            row.label,
            _percent(row.top1),
            f"{100 * row.low:.2f} to {_percent(row.high)}",
            *([_percent(row.top5)] if wide else []),
            _percent(row.drop) if row.eps else "",
            *beside,
            *([_speed(row)] if wide else []),
        )
    return table


def _pairs(pairs: tuple[PairPoint, ...], first: str, second: str, width: int) -> Table:
    wide = width >= 66 + len(first) + len(second) - 16
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("eps", no_wrap=True)
    for heading in (*((first, second) if wide else ()), "difference", "95 % interval", "McNemar p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in pairs:
        table.add_row(
            row.label,
            *((_percent(row.first), _percent(row.second)) if wide else ()),
            f"{100 * row.difference:+.2f}",
            f"{100 * row.low:+.2f} to {100 * row.high:+.2f}",
            "< 0.0001" if row.p_mid < 1e-4 else f"{row.p_mid:.4f}",
        )
    return table


def _transfer(report: AttackReport, called: dict[object, str]) -> Table:
    first, second = report.results
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("made against")
    table.add_column("eps", no_wrap=True)
    for result in report.results:
        table.add_column(called[result.file], justify="right")
    for maker, own_first in ((first, True), (second, False)):
        for own, other in zip(maker.points, maker.transfer, strict=True):
            if own.eps:
                pair = (own, other) if own_first else (other, own)
                table.add_row(called[maker.file], own.label, *(_percent(row.top1) for row in pair))
    return table


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _speed(row: RobustPoint) -> str:
    speed = row.images_per_second
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


class _Bar:
    """A live progress bar at a terminal, occasional lines elsewhere."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._progress: Progress | None = None
        self._title: str | None = None
        self._shown = time.monotonic()

    def update(self, record: AttackProgress) -> None:
        if self._quiet:
            return
        if not self._console.is_terminal:
            now = time.monotonic()
            if now - self._shown > _EVERY:
                self._shown = now
                self._console.print(f"{record.title}: {record.done / record.total:.0%}", markup=False)
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                expand=True,
            )
            self._progress.start()
        if record.title != self._title:
            self._title = record.title
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(record.title, total=record.total)
        self._progress.update(self._progress.task_ids[-1], completed=record.done)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
