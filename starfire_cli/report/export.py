"""Display of `starfire export`: what was written, and how well it agrees with the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from starfire_cli.records.export import ExportedFiles, ExportNote, ExportOutcome
from starfire_cli.report.console import open_console
from starfire_cli.text import printable, size_text


def display(outcomes: Iterable[ExportOutcome], *, to_stderr: bool = False) -> dict[str, Any]:
    """Shows records as they come; returns the JSON that `--json` prints."""
    console = open_console(stderr=to_stderr)
    summary: dict[str, Any] = {}
    for outcome in outcomes:
        match outcome:
            case ExportNote():
                console.print(printable(outcome.text), markup=False)
            case ExportedFiles():
                if not to_stderr:
                    _show(console, outcome)
                summary = as_json(outcome)
    return summary


def as_json(result: ExportedFiles) -> dict[str, Any]:
    """The result as plain values."""
    found = dataclasses.asdict(result)
    files = [{"path": str(path), "bytes": size} for path, size in result.files]
    return {**found, "input": str(result.input), "files": files, "image": list(result.image)}


def _show(console: Console, result: ExportedFiles) -> None:
    C, H, W = result.image
    lines = [
        f"{result.name} for {result.target}: {C} x {H} x {W} pixels to {result.outputs} logits, "
        f"{result.live} of {result.weights} weights live, {size_text(result.memory)} while it runs, "
        f"{result.seconds:.1f} s"
    ]
    if result.difference is None:
        lines.append("it was not run on this machine")
    else:
        lines.append(f"its logits differ from the network's by {result.difference:.1g} of the largest at most")
    if result.command is not None:
        lines.append(f"to link it: {result.command}")
    lines += [f"{path}  {size_text(size)}" for path, size in result.files]
    for line in lines:
        console.print(printable(line), markup=False)
