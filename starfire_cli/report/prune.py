"""What a person sees of one-shot pruning: what was written and what it cost, or the curve over targets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from starfire_cli.records.prune import Measured, Pruned, PruneProgress, Shrunk, SweepPoint
from starfire_cli.report.bars import bar
from starfire_cli.report.console import open_console
from starfire_cli.report.inspect import show_inspection, show_table
from starfire_cli.report.inspect_json import inspection_json, to_text
from starfire_cli.text import command_text, printable, shape_text

_POINT = ("layer", "target", "sparsity", "top1", "top5", "loss", "images")


def display(records: Iterable[PruneProgress | SweepPoint | Pruned], *, as_json: bool, as_csv: bool) -> str | None:
    """Show records as they come; returns what belongs on stdout instead of all that, with `as_json` or `as_csv`."""
    machine = as_json or as_csv
    console = open_console(stderr=machine)
    points: list[SweepPoint] = []
    pruned: Pruned | None = None
    for record in records:
        match record:
            case PruneProgress():
                console.print(Text(printable(record.text)))
            case SweepPoint():
                points.append(record)
                console.print(Text(_point_line(record, points[0])))
            case Pruned():
                pruned = record
    if as_json:
        return to_text(_pruned_json(pruned) if pruned else {"points": [asdict(point) for point in points]})
    if as_csv:
        return _points_csv(points)
    if pruned is not None:
        _show_pruned(console, pruned)
    elif any(point.layer is not None for point in points):
        _show_sensitivity(console, points)
    return None


def _show_pruned(console: Console, pruned: Pruned) -> None:
    def say(line: str) -> None:
        console.print(Text(printable(line, 2000)))

    show_inspection(console, pruned.result, pruned.result.layers)
    reasons: dict[str, list[str]] = {}
    for name, reason in pruned.left_out:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        say(f"not pruned ({reason}): {', '.join(names)}")
    for line in pruned.did:
        say(line)
    for line in _shrunk_lines(pruned.shrunk):
        say(line)
    say(f"sparsity {pruned.sparsity_before:.4f} before, {pruned.result.sparsity_prunable:.4f} after")
    if pruned.before is not None and pruned.after is not None:
        one, two = pruned.before, pruned.after
        say(
            f"top-1 {one.top1:.2%} before, {two.top1:.2%} after ({100 * (two.top1 - one.top1):+.2f} points) "
            f"on {two.images:,} images of {two.data}"
        )
    say(f"wrote {pruned.out}")
    command = command_text(pruned.fine_tuning)
    if pruned.lacking:
        say(f"to fine-tune it, add {' and '.join(pruned.lacking)}, which the file does not say, to: {command}")
    else:  # never wrapped, so that it can be copied
        console.print(Text(f"to fine-tune it: {command}"), soft_wrap=True)


def _shrunk_lines(small: Shrunk | None) -> list[str]:
    if small is None:
        return []
    if small.declined:
        return [f"nothing was removed: {small.declined}"]
    kept = [f"not removed: {count:,} dead channels ({reason})" for reason, count in small.stayed.items()]
    if small.parameters[0] == small.parameters[1]:
        return ["nothing could be removed; the network is as large as before", *kept]
    real = "" if small.difference_real is None else f", {small.difference_real:.1e} on real images"
    return [
        f"shrunk: parameters {small.parameters[0]:,} to {small.parameters[1]:,}, multiply-accumulates at "
        f"{shape_text(small.input)} {small.macs[0]:,} to {small.macs[1]:,}",
        f"{small.batch} images take {small.milliseconds[0]:.1f} ms before, {small.milliseconds[1]:.1f} ms after on "
        f"{small.device}; outputs differ by {small.difference:.1e} of the largest{real}",
        *kept,
    ]


def _point_line(point: SweepPoint, base: SweepPoint) -> str:
    layer = f"{printable(point.layer, 80)}: " if point.layer is not None else ""
    return (
        f"{layer}target {point.target:<5g} sparsity {point.sparsity:.4f}  top-1 {point.top1:7.2%} "
        f"({100 * (point.top1 - base.top1):+6.2f} points)  {bar(point.top1)}".rstrip()
    )


def _show_sensitivity(console: Console, points: Sequence[SweepPoint]) -> None:
    """A line a layer, a column a target: the top-1 that is left when that layer alone is pruned."""
    targets = sorted({point.target for point in points if point.layer is not None})
    found = {(point.layer, point.target): point.top1 for point in points}
    names = dict.fromkeys(point.layer for point in points if point.layer is not None)
    # The highest targets tell most, so they go last where there is no room for all.
    columns = [("layer", False, 0), *((f"{t:g}", True, len(targets) - i) for i, t in enumerate(targets))]
    rows = [
        [printable(str(name), 80), *(f"{found[name, t]:.2%}" if (name, t) in found else "-" for t in targets)]
        for name in names
    ]
    show_table(console, columns, rows)


def _points_csv(points: Sequence[SweepPoint]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_POINT)
    for point in points:
        row = asdict(point)
        writer.writerow(["" if row[column] is None else row[column] for column in _POINT])
    return out.getvalue()


def _pruned_json(pruned: Pruned) -> dict[str, Any]:
    def measured(value: Measured | None) -> dict[str, Any] | None:
        return asdict(value) if value is not None else None

    return {
        "out": str(pruned.out),
        "sparsity_before": pruned.sparsity_before,
        "sparsity_after": pruned.result.sparsity_prunable,
        "accuracy_before": measured(pruned.before),
        "accuracy_after": measured(pruned.after),
        "eliminated_weights": pruned.eliminated,
        "shrunk": asdict(pruned.shrunk) if pruned.shrunk else None,
        "did": list(pruned.did),
        "not_pruned": [{"name": name, "reason": reason} for name, reason in pruned.left_out],
        "result": inspection_json(pruned.result, pruned.result.layers),
    }
