"""Refuses to write over a file that the same command reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from starfire_cli.errors import BadOption
from starfire_cli.formats.run import Run


def refuse_overwriting(
    output: Path,
    read: Iterable[Path],
    *,
    option: str = "--out",
    noun: str = "the checkpoint",
    own_run: bool = False,
) -> None:
    """Raises BadOption if `output` is one of the files `read`, under whatever name: a link to it, another spelling.

    So are the files that `train` keeps in a run folder, which only `train` writes over.

    Args:
        output: the file that is going to be written.
        read: the files that have been, or are going to be, read.
        option: which the user gave for it, or could.
        noun: what the files are.
        own_run: whether `train` asks, of its own run's files.
    """
    for path in read:
        if _same(output, path):
            raise BadOption(f"{option} {output} is {noun} itself; give another name")
    if not own_run and (run := _run_of(output)) is not None:
        raise BadOption(f"{option} {output} is a file of the run {run}, which --resume needs; give another name")


def files_of(checkpoint: Path) -> list[Path]:
    """The files that a checkpoint lies in: itself, and the shards that it names if it is an index."""
    try:
        with open(checkpoint, "rb") as file:
            if not file.read(16).lstrip().startswith(b"{"):
                return [checkpoint]
        names = json.loads(checkpoint.read_bytes())["weight_map"].values()
        shards = {checkpoint.with_name(Path(name).name) for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        shards = set()
    return [checkpoint, *sorted(shards)]


def _run_of(output: Path) -> Path | None:
    """The run folder whose own file this is, under whatever name."""
    target = Path(os.path.realpath(output))
    run = Run(target.parent)
    return run.path if run.config_path.is_file() and target.exists() and target in run.files else None


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of the two is not there
        return False
