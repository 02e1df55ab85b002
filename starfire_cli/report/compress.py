"""Display of `starfire compress`: a line per layer with its encoding and sizes, and the total."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from starfire_cli.formats.packed.sizes import TensorSize
from starfire_cli.records.compress import Compressed, Note, Outcome, Written
from starfire_cli.report.console import open_console
from starfire_cli.text import printable, shape_text, size_text


def display(outcomes: Iterable[Outcome], *, to_stderr: bool = False) -> dict[str, Any]:
    """Shows records as they come; returns the JSON that `--json` prints."""
    console = open_console(stderr=to_stderr)
    summary: dict[str, Any] = {}
    for outcome in outcomes:
        match outcome:
            case Note():
                console.print(printable(outcome.text), markup=False)
            case Compressed():
                if not to_stderr:
                    _show(console, outcome)
                summary = as_json(outcome)
            case Written():
                if not to_stderr:
                    _show_written(console, outcome)
                summary = _plain(outcome)
    return summary


def as_json(result: Compressed) -> dict[str, Any]:
    """The result as plain values; `layers` are those that were packed."""
    packed = result.packed
    layers = [dataclasses.asdict(t) for t in packed.tensors if t.encoding != "plain"]
    plain = [t for t in packed.tensors if t.encoding == "plain"]
    for layer in layers:
        layer["name"] = layer.pop("key")
        if layer["codebook"] is None:
            del layer["codebook"]
    return {
        "input": str(result.input),
        "output": str(result.output),
        "dense_bytes": packed.dense_bytes,
        "packed_bytes": packed.packed_bytes,
        "bound_bytes": round(packed.bound_bytes),
        "ratio_to_bound": packed.packed_bytes / packed.bound_bytes if packed.bound_bytes else None,
        "layers": layers,
        "plain": {"tensors": len(plain), "bytes": sum(t.packed_bytes for t in plain)},
        "header_bytes": packed.header_bytes,
        "seconds": result.seconds,
        "verified": result.verified,
        "rounding": dataclasses.asdict(result.rounding) if result.rounding else None,
        "accuracy": dataclasses.asdict(result.accuracy) if result.accuracy else None,
    }


def _show(console: Console, result: Compressed) -> None:
    packed = result.packed
    wide = console.width >= 100
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    if wide:
        table.add_column("shape", no_wrap=True)
    table.add_column("encoding", no_wrap=True)
    for name in ("live", "dense", "packed", "bound"):
        table.add_column(name, justify="right", no_wrap=True)
    for t in packed.tensors:
        if t.encoding != "plain":
            shape = (shape_text(t.shape),) if wide else ()
            table.add_row(printable(t.key.removesuffix(".weight")), *shape, _encoding(t), _live(t), *_sizes(t))
    plain = [t for t in packed.tensors if t.encoding == "plain"]
    if plain:
        total = dataclasses.replace(
            plain[0],
            **{name: sum(getattr(t, name) for t in plain) for name in ("dense_bytes", "packed_bytes", "bound_bytes")},
        )
        rest = f"{len(plain)} tensors never pruned"
        table.add_row(rest, *(("",) if wide else ()), "plain", "", *_sizes(total))
    table.add_row("header", *(("",) if wide else ()), "", "", "", size_text(packed.header_bytes), "")
    console.print(table)
    _show_rounding(console, result)
    smaller = packed.dense_bytes / packed.packed_bytes
    of_bound = f"{packed.packed_bytes / packed.bound_bytes:.2f}" if packed.bound_bytes else "?"
    console.print(
        f"packed {packed.packed_bytes:,} bytes = {of_bound} of the bound, {smaller:.1f} times smaller than dense",
        markup=False,
    )
    if packed.bound_bytes and packed.header_bytes > 0.01 * packed.packed_bytes:
        without = (packed.packed_bytes - packed.header_bytes) / packed.bound_bytes
        console.print(f"without the header (names, shapes, metadata) {without:.2f} of the bound", markup=False)
    checked = "read back and compared bit by bit" if result.verified else "not verified"
    console.print(f"{printable(str(result.output))} ({result.seconds:.1f} s, {checked})", markup=False)


def _show_rounding(console: Console, result: Compressed) -> None:
    cost, accuracy = result.rounding, result.accuracy
    if cost is not None:
        console.print(
            f"{cost.count:,} values {_rounded_to(cost.values)}: off by {cost.max_error:.3g} at most, "
            f"{cost.mean_error:.3g} on average; "
            f"{f'{cost.zeroed:,} live weights became zero' if cost.zeroed else 'none became zero'}",
            markup=False,
        )
    if accuracy is not None:
        console.print(
            f"top-1 {accuracy.before:.2%} before, {accuracy.after:.2%} after, "
            f"on {accuracy.images:,} images of {printable(accuracy.data)}",
            markup=False,
        )


def _show_written(console: Console, result: Written) -> None:
    what = "unpacked" if result.form == "checkpoint" else f"written as {result.form}"
    masks = f", {result.masks} masks" if result.form in ("checkpoint", "prune") else ""
    console.print(
        f"{what}: {result.tensors} tensors{masks}, {size_text(result.bytes)}, {result.seconds:.1f} s",
        markup=False,
    )
    if result.difference is not None:
        console.print(f"onnxruntime's logits differ by {result.difference:.1g} of the largest at most", markup=False)
    console.print(printable(str(result.output)), markup=False)


def _rounded_to(values: str) -> str:
    return f"replaced by shared ones ({values})" if values.startswith("codebook") else f"rounded to {values}"


def _encoding(t: TensorSize) -> str:
    return t.encoding if t.codebook is None else f"{t.encoding}, {t.codebook} values"


def _sizes(t: TensorSize) -> tuple[str, str, str]:
    return size_text(t.dense_bytes), size_text(t.packed_bytes), size_text(t.bound_bytes)


def _live(t: TensorSize) -> str:
    return f"{t.live / t.weights:.1%}" if t.weights else ""


def _plain(record: Written) -> dict[str, Any]:
    return {k: str(v) if k in ("input", "output") else v for k, v in dataclasses.asdict(record).items()}
