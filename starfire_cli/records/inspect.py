"""Records of `starfire inspect`: layers, totals and comparisons.

Shapes and sparsities are as in docs/inspect.md; accuracies are fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starfire_cli.markup import RecordTable
from starfire_cli.records.totals import LayerTotals
from starfire_cli.text import shape_text, size_text

if TYPE_CHECKING:
    from starfire_cli.formats.checkpoint.meta import Meta


@dataclass(frozen=True, kw_only=True)
class LayerFinding:
    """One layer of a checkpoint.

    Args:
        name: of the module; `key` that of its weight in the state dict.
        kind: "window", "pointwise" or "linear".
        shape: (K, C, R, S) or (O, I); C counts the channels of one group.
        zeros: dead weights, by the mask where there is one.
        dead_kernels, dead_outputs, dead_inputs: whole kernels, output and input channels with nothing alive.
        per_window: how many windows keep 0, 1, ... R * S weights; empty without windows.
        structure: what the dead weights add up to.
        masked: whether the file holds a mask for it; else zeros were counted.
        revived: weights that the mask calls dead and that are not zero.
        idle: weights that the mask calls alive and that are zero.
        nonfinite: live weights that are NaN or infinite.
        bytes_bound: the fewest bytes it takes.
        macs, macs_left: multiply-accumulates on one image, all and those by live weights; None without a model.
    """

    name: str
    key: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    zeros: int
    dead_kernels: int = 0
    dead_outputs: int = 0
    dead_inputs: int = 0
    per_window: tuple[int, ...] = ()
    structure: str = ""
    masked: bool = True
    revived: int = 0
    idle: int = 0
    nonfinite: int = 0
    bytes_bound: float = 0.0
    macs: int | None = None
    macs_left: int | None = None

    @property
    def weights(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def consistent(self) -> bool:
        """Whether mask and weights agree.

        A dead weight that is not zero contradicts; a live one may be zero by chance, in one of 10,000 at most.
        """
        return not self.revived and 10_000 * self.idle <= self.weights

    @property
    def sparsity(self) -> float:
        """Dead weights over all weights."""
        return self.zeros / self.weights


@dataclass(frozen=True, kw_only=True, repr=False)
class Inspection(LayerTotals):
    """The findings on one checkpoint; `print` shows them as a table.

    Args:
        layers: prunable layers in model order (file order without a model).
        left_out: (parameter, why it is not counted as prunable).
        notes: what had to be done or assumed, a sentence each.
        parameters: of the whole network, buffers left out.
        masks_present: whether the file holds masks; `digest` is theirs, `digest_matches` if it is the one written down.
        masks_agree: whether names of one tensor (tied weights) have one mask.
        meta: what the file says about itself.
        model: the spec of the network whose structure was used; None if there was none.
        input: (channels, height, width) for which multiply-accumulates were counted.
        bytes_dense, bytes_packed, bytes_bound: tensors as they are, a packed file's estimate, the entropy bound.
    """

    path: Path
    format: str
    layers: tuple[LayerFinding, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    parameters: int = 0
    masks_present: bool = True
    digest: str | None = None
    digest_matches: bool = True
    meta: Meta
    model: str | None = None
    input: tuple[int, int, int] | None = None
    bytes_file: int = 0
    bytes_dense: int = 0
    bytes_packed: int = 0
    bytes_bound: int = 0
    masks_agree: bool = True

    @property
    def macs(self) -> tuple[int, int] | None:
        """Multiply-accumulates on one image: all, and those by live weights."""
        known = [(x.macs, x.macs_left) for x in self.layers if x.macs is not None and x.macs_left is not None]
        return (sum(a for a, _ in known), sum(b for _, b in known)) if self.input and known else None

    @property
    def consistent(self) -> bool:
        """Whether masks, weights and the digest agree (true where there are no masks)."""
        return self.digest_matches and self.masks_agree and all(layer.consistent for layer in self.layers)

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> RecordTable:
        sizes = f"{size_text(self.bytes_dense)} dense, about {size_text(self.bytes_packed)} packed"
        macs = [f"multiply-accumulates: {self.macs[0]:,} dense, {self.macs[1]:,} by live weights"] if self.macs else []
        wrong = [] if self.consistent else ["masks and weights contradict each other: starfire inspect says where"]
        return RecordTable(
            title=str(self.path),
            head=("layer", "kind", "shape", "weights", "dead", "structure"),
            rows=[
                (x.name, x.kind, shape_text(x.shape), f"{x.weights:,}", f"{x.sparsity:.2%}", x.structure)
                for x in self.layers
            ],
            total=("all", "", "", f"{self.prunable:,}", f"{self.sparsity_prunable:.2%}", ""),
            notes=(*wrong, *macs, sizes, *self.notes),
        )


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """One layer of two checkpoints.

    Args:
        iou: live in both over live in either; 1 where both are all dead.
        revived: dead in the first, alive in the second.
        died: alive in the first, dead in the second.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    sparsity_a: float
    sparsity_b: float
    iou: float
    revived: int
    died: int


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Two networks' predictions on the same validation images; accuracies are fractions.

    Args:
        notes: what had to be assumed, a sentence each.
    """

    data: str
    images: int
    flipped: int
    top1_a: float
    top1_b: float
    right_only_in_a: int
    right_only_in_b: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Two checkpoints side by side; `unmatched` are layers of one only, or of two shapes, with the reason."""

    a: Inspection
    b: Inspection
    layers: tuple[LayerDifference, ...]
    unmatched: tuple[tuple[str, str], ...]
    same_weights: bool
    predictions: Predictions | None = None

    @property
    def iou(self) -> float:
        """Live weights in both over live weights in either, of all matched layers."""
        weights = sum(x.weights for x in self.layers)
        alive_a = weights - sum(round(x.sparsity_a * x.weights) for x in self.layers)
        either = alive_a + self.revived
        return (alive_a - self.died) / either if either else 1.0

    @property
    def revived(self) -> int:
        """Weights that are dead in the first and alive in the second."""
        return sum(x.revived for x in self.layers)

    @property
    def died(self) -> int:
        """Weights that are alive in the first and dead in the second."""
        return sum(x.died for x in self.layers)

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> RecordTable:
        shares = (f"{self.a.sparsity_prunable:.2%}", f"{self.b.sparsity_prunable:.2%}", f"{self.iou:.3f}")
        return RecordTable(
            title=f"A: {self.a.path}, B: {self.b.path}",
            head=("layer", "dead in A", "dead in B", "IoU", "revived", "died"),
            rows=[
                (x.name, f"{x.sparsity_a:.2%}", f"{x.sparsity_b:.2%}", f"{x.iou:.3f}", f"{x.revived:,}", f"{x.died:,}")
                for x in self.layers
            ],
            total=("all", *shares, f"{self.revived:,}", f"{self.died:,}"),
            notes=[f"{name}: {why}" for name, why in self.unmatched],
        )
