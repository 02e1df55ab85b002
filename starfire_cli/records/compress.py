"""Records of `starfire compress`: layers, sizes and accuracies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starfire_cli.formats.packed.rounding import Rounding
from starfire_cli.formats.packed.sizes import Packed


@dataclass(frozen=True, kw_only=True)
class Note:
    """A note for the user, ahead of the result."""

    text: str


@dataclass(frozen=True, kw_only=True)
class AccuracyChange:
    """Top-1 on the same images before and after rounding, as fractions."""

    data: str
    images: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """The result of packing a checkpoint.

    Args:
        input: the checkpoint.
        output: the packed file.
        packed: its sizes.
        seconds: from checkpoint in memory to file on disk.
        verified: whether it was read back and compared before it got its name.
        rounding: what `--values` cost; None where every bit was kept.
        accuracy: likewise, where there were data to measure it on.
    """

    input: Path
    output: Path
    packed: Packed
    seconds: float
    verified: bool
    rounding: Rounding | None = None
    accuracy: AccuracyChange | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """The result of writing another file from a checkpoint: unpacked, or in a form for other tools.

    Args:
        form: "checkpoint", "safetensors", "prune", "bitmask" or "onnx".
        bytes: of the file.
        tensors: how many tensors the checkpoint has.
        masks: how many of them have masks.
        difference: the largest difference between the outputs of network and file, where that was measured.
    """

    input: Path
    output: Path
    form: str
    bytes: int
    tensors: int
    masks: int
    seconds: float
    difference: float | None = None


Outcome = Note | Compressed | Written
