"""Display of `starfire data pack`: a bar at a terminal, in a pipe a line for every tenth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from starfire_cli.records.data import PackedData, PackingPart, PackingStarted
from starfire_cli.report.console import open_console
from starfire_cli.text import command_text, printable, size_text

SHOWN = 5  # names of corrupt images


def display(
    records: Iterable[PackingStarted | PackingPart | PackedData], *, quiet: bool = False, to_stderr: bool = False
) -> dict[str, Any]:
    """Shows records as they come; returns the JSON that `--json` prints."""
    console = open_console(stderr=to_stderr)
    summary: dict[str, Any] = {}
    total, tenth = 0, 0
    with Progress(
        TextColumn("packing"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as bar:
        task = bar.add_task("packing", total=None)
        for record in records:
            match record:
                case PackingStarted():
                    total = sum(record.images.values())
                    bar.update(task, total=total)
                    if not quiet:
                        _started(console, record)
                case PackingPart():
                    bar.update(task, completed=record.images)
                    if not quiet and not console.is_terminal and record.images * 10 // total > tenth:
                        tenth = record.images * 10 // total
                        rate = f"{record.per_second:,.0f} a second"
                        console.print(f"packed: {record.images:,} of {total:,} images, {rate}")
                case PackedData():
                    summary = dataclasses.asdict(record) | {"out": str(record.out)}
                    _ended(console, record)
    return summary


def _started(console: Console, record: PackingStarted) -> None:
    for note in record.notes:
        console.print(note, markup=False)
    counts = ", ".join(f"{part} {count:,}" for part, count in record.images.items())
    there = f", {record.there:,} of them there already" if record.there else ""
    console.print(f"{printable(record.source)}: {counts} images into {record.shards:,} shards{there}", markup=False)


def _ended(console: Console, record: PackedData) -> None:
    for text in record.skipped[:SHOWN]:
        console.print(f"left out as corrupt: {printable(text)}", markup=False)
    if len(record.skipped) > SHOWN:
        console.print(f"left out as corrupt: {len(record.skipped) - SHOWN} more", markup=False)
    images = sum(record.images.values())
    console.print(
        f"{images:,} images in {record.shards:,} shards, {size_text(record.bytes)}, {record.seconds:.1f} s",
        markup=False,
    )
    console.print(f"next: {command_text(('starfire', 'train', '--data', str(record.out)))}", markup=False)
