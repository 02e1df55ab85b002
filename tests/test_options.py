"""Whether every option is declared once: in a request, from which the command line, its errors and docs are made."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from starfire_cli.cli import build_app, commands
from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint.interchange import WRITERS
from starfire_cli.formats.packed.rounding import ROUNDED
from starfire_cli.formats.packed.streams import EFFORTS
from starfire_cli.options import Option, check, declared, nested, option_of
from starfire_cli.pruning.schedule import RAMPS
from starfire_cli.workflows.attack.request import AttackRequest
from starfire_cli.workflows.bench.request import BenchRequest
from starfire_cli.workflows.compress.request import CompressRequest
from starfire_cli.workflows.data.request import PackRequest
from starfire_cli.workflows.plot.request import PlotRequest
from starfire_cli.workflows.prune.request import PruneRequest, TrialRequest
from starfire_cli.workflows.train.request import TrainRequest

PACKAGE = Path(__file__).resolve().parents[1] / "starfire_cli"
ROOT: Any = typer.main.get_command(build_app())


def fields_of(name: str) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """Every option behind a command, those of requests inside requests too."""
    left = list(commands()[name].requests)  # type: ignore[attr-defined]
    while left:
        request = left.pop()
        left += [inner for field in dataclasses.fields(request) if (inner := nested(field)) is not None]
        yield from declared(request)


@pytest.mark.parametrize("name", commands())
def test_the_command_line_has_the_options_and_defaults_of_its_requests(name: str) -> None:
    command = ROOT
    for word in name.split():
        command = command.commands[word]
    offered = {param.name: param for param in command.params if param.name != "help"}
    found = {field.name: (field, said) for field, said in fields_of(name)}
    assert offered.keys() == found.keys() and len(found) == len(list(fields_of(name)))
    for key, (field, said) in found.items():
        param = offered[key]
        if param.param_type_name == "option":
            assert param.help == said.help_text()
        if field.default is dataclasses.MISSING:
            assert param.required
        elif isinstance(field.default, tuple) and field.default:
            assert param.default == ",".join(map(str, field.default))
        else:
            assert (param.default or field.default) == field.default


def test_no_command_declares_an_option_of_its_own() -> None:
    """Only `command.py` makes typer's options, and `cli.py` that of `--version`."""
    for module in PACKAGE.rglob("*.py"):
        if module.name in ("command.py", "cli.py"):
            continue
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            made = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert made not in ("typer.Option", "typer.Argument"), f"{module}:{node.lineno}"  # type: ignore[attr-defined]


def test_no_two_options_of_a_command_share_a_flag_and_no_help_is_written_twice() -> None:
    told: dict[str, set[str]] = {}
    for name in commands():
        flags: list[str] = []
        for field, said in fields_of(name):
            flags += [*(said.flags or (said.flag(field.name),)), *filter(None, [said.short])]
            told.setdefault(said.help, set()).add(field.name)
        assert len(flags) == len(set(flags))
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    for help_text in told:
        assert sum(source.count(f'"{help_text}"') for source in sources) <= 1 or help_text == "{choices}.", help_text


@pytest.mark.parametrize(
    ("request_class", "name", "known"),
    [
        (TrainRequest, "ramp", RAMPS),
        (CompressRequest, "values", ("exact", *ROUNDED, "codebook")),
        (CompressRequest, "effort", EFFORTS),
        (CompressRequest, "to", (*WRITERS, "onnx")),
    ],
)
def test_the_choices_are_what_there_is(request_class: type, name: str, known: Any) -> None:
    assert option_of(request_class, name).choices == tuple(known)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (TrainRequest(mask_every=0), "--mask-every 0 is out of range: steps, at least 1"),
        (TrainRequest(momentum=1.0), "--momentum 1 is out of range: 0 to below 1"),
        (TrainRequest(momentum=float("nan")), "--momentum nan is out of range: 0 to below 1"),
        (TrainRequest(batch_size=0), "--batch-size 0 is out of range: at least 1"),
        (TrainRequest(image_size=10**9), "--image-size 1000000000 is out of range: pixels, 8 to 16384"),
        (TrainRequest(optimizer="sgdm"), "unknown --optimizer 'sgdm'; there are: adagrad, adam, adamw, "),
        (PruneRequest(trial=TrialRequest(workers=-1)), "--workers -1 is out of range: processes, 0 to 1024"),
        (AttackRequest(images=0), "--images 0 is out of range: images, at least 1"),
        (BenchRequest(threads=1025), "--threads 1025 is out of range: 1 to 1024"),
        (PackRequest(source="x", out=Path("y"), quality=101), "--quality 101 is out of range: 1 to 100"),
        (PlotRequest(width=2.5), "--width 2.5 is out of range: 3 to 20"),
        (CompressRequest(to="zip"), "unknown --to 'zip'; there are: bitmask, onnx, prune, safetensors."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ranges_and_choices_hold_for_python_too(request_: Any, says: str) -> None:
    with pytest.raises(BadOption) as caught:
        check(request_)
    assert str(caught.value).startswith(says)
