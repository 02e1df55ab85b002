"""Reads options of `starfire train` that stand on another command's line."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from starfire_cli.commands.checked import CheckedCommand
from starfire_cli.commands.command import command
from starfire_cli.workflows.train.request import TrainRequest


def parse_train_options(words: Sequence[str]) -> tuple[TrainRequest, frozenset[str]]:
    """The request that `starfire train WORDS` would make, and the fields that were given.

    Raises BadOption, or typer's own errors, as `starfire train` does.
    """
    found: list[tuple[TrainRequest, frozenset[str]]] = []

    @command(TrainRequest, given=True)
    def train(request: TrainRequest, *, given: frozenset[str]) -> None:
        found.append((request, given))

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("train", cls=CheckedCommand)(train)
    app(args=list(words), prog_name="starfire train", standalone_mode=False)
    return found[0]
