"""Records of `starfire export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExportNote:
    """A note for the user, ahead of the result."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ExportedFiles:
    """The result of an export.

    Args:
        input: the checkpoint.
        name: what files and functions are called.
        target: where it runs.
        files: what was written, and the bytes of each.
        image: (C, H, W) of an image.
        outputs: logits for each.
        live: weights that are not zero.
        weights: of the dense network.
        memory: bytes that one thread needs while it runs.
        difference: from the network's logits, as a share of the largest; None where it was not run here.
        command: what links the object file, where nothing here could.
        seconds: all of it took.
    """

    input: Path
    name: str
    target: str
    files: tuple[tuple[Path, int], ...]
    image: tuple[int, int, int]
    outputs: int
    live: int
    weights: int
    memory: int
    difference: float | None
    command: str | None
    seconds: float


ExportOutcome = ExportNote | ExportedFiles
