"""Display of `starfire bench`: a table for each batch size, and the saving by zeros; or all of it as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from starfire_cli.records.bench import BatchTimings, BenchProgress, LayerTiming, Setting, Timing
from starfire_cli.report.console import open_console
from starfire_cli.report.inspect import show_table
from starfire_cli.report.inspect_json import to_text
from starfire_cli.text import printable, shape_text

# Heading, whether numbers go to the right, and how much the column is wanted, as in `inspect_table`.
_WAYS = (
    ("way", False, 0),
    ("median ms", True, 1),
    ("p90 ms", True, 4),
    ("images/s", True, 2),
    ("ours", True, 3),
    ("differs by", True, 5),
    ("ready s", True, 6),
)
_LAYERS = (
    ("layer", False, 0),
    ("shape", False, 4),
    ("live", True, 2),
    ("runs as", False, 1),
    ("ms", True, 3),
    ("dense ms", True, 5),
    ("kernels ms", True, 8),
    ("taps ms", True, 9),
    ("faster", True, 6),
    ("MACs", True, 7),
)


def display(
    records: Iterable[BenchProgress | Setting | BatchTimings], *, layers: bool = False, as_json: bool = False
) -> str | None:
    """Shows records as they come; with `as_json`, returns the text for stdout instead.

    Args:
        records: of the workflow.
        layers: also show a table of the layers; JSON always has them.
        as_json: show nothing but what is going on.
    """
    console, aside = open_console(), open_console(stderr=True)
    setting: Setting | None = None
    found: list[BatchTimings] = []
    for record in records:
        match record:
            case BenchProgress():
                aside.print(Text(printable(record.text), style="dim"))
            case Setting():
                setting = record
                if not as_json:
                    _show_setting(console, record)
            case BatchTimings():
                found.append(record)
                if not as_json and setting is not None:
                    _show(console, setting, record, layers)
    return to_text(_json(setting, found)) if as_json and setting is not None else None


def _show_setting(console: Console, setting: Setting) -> None:
    say = _sayer(console)
    threads = f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
    say(f"{setting.path}: {setting.title}; {shape_text(setting.input)}, float32")
    say(f"{setting.processor}, {threads}; {', '.join(f'{k} {v}' for k, v in setting.versions.items())}")
    say(
        f"multiply-accumulates of an image: {setting.macs:,} dense, {setting.macs_left:,} by live weights "
        f"({setting.macs_left / max(1, setting.macs):.1%})"
    )
    for note in setting.notes:
        say(f"note: {note}")


def _show(console: Console, setting: Setting, found: BatchTimings, layers: bool) -> None:
    say = _sayer(console)
    say("")
    say(f"{found.batch} image{'s' if found.batch > 1 else ''} a call")
    ran = [timing for timing in found.timings if timing.problem is None]
    show_table(console, _WAYS, [_row(found, timing) for timing in ran])
    for timing in found.timings:
        if timing.problem is not None:
            say(f"{timing.label}: not run: {timing.problem}")
        elif not timing.counts:
            text = f"{timing.label} computes something else: its output differs by {timing.difference:.2g} of the"
            console.print(Text(f"{text} largest value", style="bold yellow"))
    best, speedup = found.best_dense, found.speedup(found.best_dense)
    spread = found.speedup_range(best)
    if speedup is not None and spread is not None:
        fewer = f"{setting.macs / setting.macs_left:.2f}" if setting.macs_left else "infinitely"
        say(
            f"ours is {speedup:.2f} times as fast as the best dense, {best.label} "
            f"(by round {spread[0]:.2f} to {spread[1]:.2f}), with {fewer} times fewer multiply-accumulates"
        )
    if found.engine is not None and found.ours is not None and found.engine.name != found.ours.name:
        labels = {timing.name: timing.label for timing in found.timings}
        engine, own = found.engine.seconds[found.engine.name], found.engine.seconds[found.ours.name]
        say(
            f"ours runs as a whole by {labels.get(found.engine.name, found.engine.name)}, which took "
            f"{1000 * engine:.2f} ms where the loops took {1000 * own:.2f}: its zeros are too few to pay"
        )
    if layers and found.layers:
        say("")
        say("one image at a time, by layer:" if found.batch == 1 else "an image of several, by layer:")
        show_table(console, _LAYERS, [_layer_row(layer) for layer in found.layers])


def _row(found: BatchTimings, timing: Timing) -> list[str]:
    speedup = None if timing.sparse else found.speedup(timing)
    return [
        f"{timing.label} *" if timing is found.best_dense else timing.label,
        f"{1000 * timing.median:.2f}",
        f"{1000 * timing.p90:.2f}",
        f"{found.batch / timing.median:.1f}",
        "" if speedup is None else f"{speedup:.2f} x",
        f"{timing.difference:.1e}{'' if timing.counts else ' !'}",
        f"{timing.ready:.1f}",
    ]


def _layer_row(layer: LayerTiming) -> list[str]:
    def ms(way: str) -> str:
        return f"{1000 * layer.seconds[way]:.3f}" if way in layer.seconds else ""

    fewer = layer.macs / layer.macs_left if layer.macs_left else None
    return [
        printable(layer.name, 80),
        shape_text(layer.shape),
        f"{layer.density:.3f}",
        layer.how,
        ms(layer.how),
        ms("dense"),
        ms("kernels"),
        ms("taps"),
        f"{layer.faster:.2f} x" if layer.faster is not None else "",
        f"1/{fewer:.1f}" if fewer is not None else "0",
    ]


def _sayer(console: Console) -> Any:
    return lambda line: console.print(Text(printable(line, 2000)))


def _json(setting: Setting, found: list[BatchTimings]) -> dict[str, Any]:
    """The result under its documented keys (docs/bench.md)."""
    return {
        "path": str(setting.path),
        "title": setting.title,
        "input": list(setting.input),
        "threads": setting.threads,
        "processor": setting.processor,
        "versions": dict(setting.versions),
        "macs": setting.macs,
        "macs_effective": setting.macs_left,
        "notes": list(setting.notes),
        "batches": [_batch_json(batch) for batch in found],
    }


def _batch_json(found: BatchTimings) -> dict[str, Any]:
    best = found.best_dense
    return {
        "batch": found.batch,
        "best_dense": best.name,
        "speedup": found.speedup(best),
        "speedup_range": found.speedup_range(best),
        "engine": asdict(found.engine) if found.engine is not None else None,
        "ways": [_way_json(found, timing) for timing in found.timings],
        "layers": [
            asdict(layer) | {"density": layer.density, "macs_effective": layer.macs_left, "faster": layer.faster}
            for layer in found.layers
        ],
    }


def _way_json(found: BatchTimings, timing: Timing) -> dict[str, Any]:
    ran = timing.problem is None
    return {
        "name": timing.name,
        "label": timing.label,
        "sparse": timing.sparse,
        "not_run": timing.problem,
        "median_seconds": timing.median if ran else None,
        "p90_seconds": timing.p90 if ran else None,
        "images_per_second": found.batch / timing.median if ran else None,
        "calls": len(timing.calls),
        "rounds": len(timing.rounds),
        "ready_seconds": timing.ready if ran else None,
        "difference": timing.difference if ran else None,
        "same_output": timing.counts if ran else None,
    }
