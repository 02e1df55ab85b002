"""The command `starfire inspect`: reports a checkpoint's sparsity, or compares two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeVar

import typer

from starfire_cli.commands.command import command
from starfire_cli.commands.options import JSON
from starfire_cli.errors import BadOption, Mismatch
from starfire_cli.options import option
from starfire_cli.records.inspect import Comparison, Inspection, LayerDifference, LayerFinding
from starfire_cli.report import inspect_json
from starfire_cli.report.console import open_console
from starfire_cli.report.inspect import show_inspection
from starfire_cli.report.inspect_compare import show_comparison
from starfire_cli.text import by_number
from starfire_cli.workflows.inspect.request import InspectRequest
from starfire_cli.workflows.options import OUTPUT_PANEL


@dataclass(frozen=True, kw_only=True)
class InspectDisplay:
    """Display options of `starfire inspect`: layers, their order, and the format."""

    layers: tuple[str, ...] = option(
        (), "List only layers whose name matches; may be repeated.", metavar="GLOB", panel=OUTPUT_PANEL
    )
    sort: str = option(
        "model",
        "Order of the layers: {choices}.",
        panel=OUTPUT_PANEL,
        choices=("model", "sparsity", "name", "size"),
    )
    as_json: bool = JSON.default(False)
    as_csv: bool = option(False, "Print the layers as CSV on stdout.", flags=("--csv",), panel=OUTPUT_PANEL)


@command(InspectRequest, InspectDisplay)
def inspect(request: InspectRequest, shown: InspectDisplay) -> None:
    """Show how sparse a checkpoint is, layer by layer, and what its zeros have in common.

    Any checkpoint will do: starfire's own, packed or not, state dicts, safetensors, other tools' pruned models.
    With two checkpoints, show what lies between them; with --evaluate, also how many predictions flipped.
    """
    if shown.as_json and shown.as_csv:
        raise BadOption("--json and --csv both print on stdout; choose one")
    request.check()
    from starfire_cli.numbers import parse_input
    from starfire_cli.workflows.inspect.run import inspect_fitted, open_checkpoint

    size = parse_input(request.image)
    one, first = inspect_fitted(open_checkpoint(request.checkpoint, request.weights), model=request.model, image=size)
    found = [one]
    if request.other is None:
        names = _listed(one, shown.layers)
        _show_one(one, _sorted(one.layers, names, shown.sort), shown)
    else:
        from starfire_cli.workflows.inspect.compare import compare, predictions

        two, second = inspect_fitted(open_checkpoint(request.other, request.weights), model=request.model, image=size)
        found.append(two)
        compared = compare(first, second, one, two)
        if request.wants_data:
            compared = replace(compared, predictions=predictions(first, second, request))
        names = _listed(one, shown.layers)
        _show_two(compared, _sorted(compared.layers, names, shown.sort), shown)
    wrong = [str(one.path) for one in found if not one.consistent]
    if request.strict and wrong:
        raise Mismatch(f"{', '.join(wrong)}: masks, weights and digest contradict each other")


def _show_one(found: Inspection, layers: list[LayerFinding], shown: InspectDisplay) -> None:
    if shown.as_json:
        typer.echo(inspect_json.to_text(inspect_json.inspection_json(found, layers)))
    elif shown.as_csv:
        typer.echo(inspect_json.layers_csv(layers), nl=False)
    else:
        show_inspection(open_console(), found, layers)


def _show_two(found: Comparison, layers: list[LayerDifference], shown: InspectDisplay) -> None:
    if shown.as_json:
        typer.echo(inspect_json.to_text(inspect_json.comparison_json(found, layers)))
    elif shown.as_csv:
        typer.echo(inspect_json.differences_csv(layers), nl=False)
    else:
        show_comparison(open_console(), found, layers)


def _listed(found: Inspection, globs: Sequence[str]) -> set[str]:
    """The names that `--layers` leaves. Raises BadOption for a glob that matches none."""
    names = {layer.name for layer in found.layers}
    kept = set() if globs else names
    for glob in globs:
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
