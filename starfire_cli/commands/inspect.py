"""The command `starfire inspect`: reports a checkpoint's sparsity, or compares two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from starfire_cli.commands.options import (
    DATA_PANEL,
    OUTPUT_PANEL,
    BatchSize,
    CheckpointPath,
    DataSpec,
    Device,
    Json,
    Mean,
    Std,
    Weights,
    Workers,
)
from starfire_cli.errors import BadOption, Mismatch
from starfire_cli.records.inspect import Comparison, Inspection, LayerDifference, LayerFinding
from starfire_cli.report import inspect_json
from starfire_cli.report.compare import show_comparison
from starfire_cli.report.console import open_console
from starfire_cli.report.inspect import show_inspection
from starfire_cli.text import by_number

SORTS = ("model", "sparsity", "name", "size")


def inspect(
    checkpoint: CheckpointPath = None,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="[OTHER]", help="A second checkpoint to compare with the first.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="SPEC",
            help="The network, where the file does not say: resnet50, timm:NAME, package.module:callable. "
            "Gives groups, model order and multiply-accumulates.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="CxHxW",
            help="The image for which multiply-accumulates are counted, such as 3x224x224.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            metavar="GLOB",
            help="List only layers whose name matches; may be repeated.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help=f"Order of the layers: {', '.join(SORTS)}.", rich_help_panel=OUTPUT_PANEL)
    ] = "model",
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 3 if masks, weights and digest contradict each other."),
    ] = False,
    as_json: Json = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print the layers as CSV on stdout.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate",
            help="With two checkpoints: count predictions that flip, on the checkpoints' data; --data implies it.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = False,
    data: DataSpec = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 256,
    workers: Workers = 2,
    device: Device = "auto",
) -> None:
    """Show how sparse a checkpoint is, layer by layer, and what its zeros have in common.

    Any checkpoint will do: starfire's own, packed or not, state dicts, safetensors, other tools' pruned models.
    With two checkpoints, show what lies between them; with --evaluate, also how many predictions flipped.
    """
    from starfire_cli.values import parse_input
    from starfire_cli.workflows.inspect.run import inspect_fitted, open_checkpoint

    if sort not in SORTS:
        raise BadOption(f"--sort {sort!r} is unknown; there are: {', '.join(SORTS)}")
    if as_json and as_csv:
        raise BadOption("--json and --csv both print on stdout; choose one")
    if other is None and (evaluate or data is not None):
        raise BadOption("--evaluate and --data are for two checkpoints; starfire attack measures a single one")
    if not evaluate and data is None and (mean is not None or std is not None):
        raise BadOption("--mean and --std are for --evaluate, which shows images to two networks")
    size = parse_input(image)
    one, first = inspect_fitted(open_checkpoint(checkpoint, weights), model=model, image=size)
    found = [one]
    if other is None:
        names = _listed(found[0], layers)
        _show_one(found[0], _sorted(found[0].layers, names, sort), as_json, as_csv)
    else:
        from starfire_cli.values import parse_channels
        from starfire_cli.workflows.inspect.compare import compare, predictions

        two, second = inspect_fitted(open_checkpoint(other, weights), model=model, image=size)
        found.append(two)
        compared = compare(first, second, *found)
        if evaluate or data is not None:
            flips = predictions(
                first,
                second,
                data=data,
                model=model,
                batch_size=batch_size,
                device=device,
                workers=workers,
                mean=parse_channels(mean, "--mean"),
                std=parse_channels(std, "--std"),
            )
            compared = replace(compared, predictions=flips)
        names = _listed(found[0], layers)
        _show_two(compared, _sorted(compared.layers, names, sort), as_json, as_csv)
    wrong = [str(one.path) for one in found if not one.consistent]
    if strict and wrong:
        raise Mismatch(f"{', '.join(wrong)}: masks, weights and digest contradict each other")


def _show_one(found: Inspection, layers: list[LayerFinding], as_json: bool, as_csv: bool) -> None:
    if as_json:
        typer.echo(inspect_json.to_text(inspect_json.inspection_json(found, layers)))
    elif as_csv:
        typer.echo(inspect_json.layers_csv(layers), nl=False)
    else:
        show_inspection(open_console(), found, layers)


def _show_two(found: Comparison, layers: list[LayerDifference], as_json: bool, as_csv: bool) -> None:
    if as_json:
        typer.echo(inspect_json.to_text(inspect_json.comparison_json(found, layers)))
    elif as_csv:
        typer.echo(inspect_json.differences_csv(layers), nl=False)
    else:
        show_comparison(open_console(), found, layers)


def _listed(found: Inspection, globs: list[str] | None) -> set[str]:
    """The names that `--layers` leaves. Raises BadOption for a glob that matches none."""
    names = {layer.name for layer in found.layers}
    kept = set() if globs else names
    for glob in globs or ():
        matching = {
            layer.name for layer in found.layers if fnmatchcase(layer.name, glob) or fnmatchcase(layer.key, glob)
        }
        if not matching:
            some = ", ".join(sorted(names)[:6])
            raise BadOption(f"--layers {glob!r} matches none of the {len(names)} layers: {some}, ...")
        kept |= matching
    return kept


Row = TypeVar("Row", LayerFinding, LayerDifference)


def _sorted(layers: Sequence[Row], names: set[str], sort: str) -> list[Row]:
    """Those of `names`: the sparsest or largest first, or by name with numbers counted as numbers."""
    kept = [layer for layer in layers if layer.name in names]
    if sort == "sparsity":
        return sorted(kept, key=lambda x: -(x.sparsity if isinstance(x, LayerFinding) else x.sparsity_b))
    if sort == "size":
        return sorted(kept, key=lambda x: -x.weights)
    return sorted(kept, key=lambda x: by_number(x.name)) if sort == "name" else kept
