"""Records of `starfire compress`: layers, sizes and accuracies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starfire_cli.formats.packed.rounding import Rounding
from starfire_cli.formats.packed.sizes import Packed
from starfire_cli.markup import RecordTable
from starfire_cli.text import size_text


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


@dataclass(frozen=True, kw_only=True, repr=False)
class Compressed:
    """The result of packing a checkpoint; `print` shows it as a table.

    Args:
        input: the checkpoint.
        output: the packed file.
        packed: its sizes.
        seconds: from checkpoint in memory to file on disk.
        verified: whether it was read back and compared before it got its name.
        rounding: what `--values` cost; None where every bit was kept.
        accuracy: likewise, where there were data to measure it on.
        notes: what a user should know, as `starfire.compress` returns it.
    """

    input: Path
    output: Path
    packed: Packed
    seconds: float
    verified: bool
    rounding: Rounding | None = None
    accuracy: AccuracyChange | None = None
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """The size of the tensors in memory over that of the file."""
        return self.packed.dense_bytes / max(1, self.packed.packed_bytes)

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> RecordTable:
        sizes = sorted(self.packed.tensors, key=lambda size: -size.packed_bytes)[:20]
        rows = [(x.key, x.encoding, size_text(x.dense_bytes), size_text(x.packed_bytes)) for x in sizes]
        rest = len(self.packed.tensors) - len(sizes)
        change = self.accuracy
        measured = [f"top-1 {change.before:.2%} before, {change.after:.2%} after"] if change else []
        return RecordTable(
            title=f"{self.output}: {self.ratio:.1f} x smaller",
            head=("tensor", "masks", "in memory", "packed"),
            rows=rows + ([(f"{rest} smaller ones", "", "", "")] if rest else []),
            total=("file", "", size_text(self.packed.dense_bytes), size_text(self.packed.packed_bytes)),
            notes=(*measured, *self.notes),
        )


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
