"""Refuses to overwrite a file that the same command reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from starfire_cli.errors import BadOption


def refuse_overwriting(
    output: Path, read: Iterable[Path], *, option: str = "--out", noun: str = "the checkpoint"
) -> None:
    """Raises BadOption if `output` is one of the files `read`, under any name: a link to it, another spelling.

    Args:
        output: the file that is going to be written.
        read: the files that have been, or are going to be, read.
        option: which the user gave for it, or could.
        noun: what the files are.
    """
    for path in read:
        if _same(output, path):
            raise BadOption(f"{option} {output} is {noun} itself; give another name")


def files_of(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint: itself, and the shards of an index."""
    try:
        with open(checkpoint, "rb") as file:
            if not file.read(16).lstrip().startswith(b"{"):
                return [checkpoint]
        names = json.loads(checkpoint.read_bytes())["weight_map"].values()
        shards = {checkpoint.with_name(Path(name).name) for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        shards = set()
    return [checkpoint, *sorted(shards)]


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of the two is not there
        return False
