"""The command `starfire bench`."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from starfire_cli.commands.command import command
from starfire_cli.commands.options import JSON
from starfire_cli.options import option
from starfire_cli.workflows.bench.request import BenchRequest
from starfire_cli.workflows.options import OUTPUT_PANEL


@dataclass(frozen=True, kw_only=True)
class BenchDisplay:
    """Display options of `starfire bench`."""

    layers: bool = option(False, "Also list how each layer runs, and why.", panel=OUTPUT_PANEL)
    as_json: bool = JSON.default(False)


@command(BenchRequest, BenchDisplay)
def bench(request: BenchRequest, shown: BenchDisplay) -> None:
    """Time a network on this CPU: dense by torch, ONNX Runtime and OpenVINO, and sparse by its live weights.

    All take turns in one run, with the same images and threads, and their outputs are compared.
    """
    from starfire_cli.report.bench import display
    from starfire_cli.workflows.bench.run import bench as run

    text = display(run(request), layers=shown.layers, as_json=shown.as_json)
    if text is not None:
        typer.echo(text)
