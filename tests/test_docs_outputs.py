"""Outputs in the documentation: every command has a block, and the check knows what differs from machine to machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from starfire_cli.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def outputs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_outputs", ROOT / "docs" / "generate_outputs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_an_output_on_a_page(outputs: ModuleType) -> None:
    shown = [command for commands in outputs.pages().values() for command in commands]
    for name in COMMANDS:
        assert any(command.startswith(f"starfire {name} ") for command in shown), name


def test_every_block_has_its_command_in_it(outputs: ModuleType) -> None:
    for page in outputs.pages():
        for found in outputs.BLOCK.finditer(page.read_text(encoding="utf-8")):
            assert f"```console\n$ {found['command']}\n" in found[0]


def test_headings_have_no_figures(outputs: ModuleType) -> None:
    lines = (
        "<!-- output: x -->",
        "```console",
        "$ x",
        "way   median ms  p90 ms",
        "torch  1.5",
        "load (3.1)",
        "...",
        "```",
    )
    assert outputs.headings("\n".join(lines)) == {"way median ms p90 ms"}


def test_an_unsteady_block_is_kept_while_its_headings_are_printed(outputs: ModuleType) -> None:
    command = next(iter(outputs.UNSTEADY))
    old = outputs.block(command, "way  ms\ntorch  1.5", None)
    found = outputs.BLOCK.fullmatch(old)
    assert outputs._renewed(found, {command: "way ms\ntorch  9\nother  2"}, outputs.UNSTEADY) == old
    assert outputs._renewed(found, {command: "engine  ms\ntorch  9"}, outputs.UNSTEADY) != old
