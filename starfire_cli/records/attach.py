"""Records of a training with an attached pruner: how sparse each layer is, and where the era stands."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.markup import table
from starfire_cli.text import shape_text


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One pruned layer.

    Args:
        name: of the module.
        kind: "window", "pointwise" or "linear".
        shape: (K, C, R, S) or (O, I); C counts the channels of one group.
        weights: their number.
        zeros: dead weights.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Dead weights over all weights."""
        return self.zeros / self.weights


@dataclass(frozen=True, kw_only=True)
class PruningSummary:
    """The state of a model in training.

    Args:
        method, fc: specs of the methods for convolutions and for linear layers.
        target: the final sparsity threshold; None where the method aims at none.
        step: optimizer steps so far.
        first_step, last_step: of the era.
        layers: the pruned ones, in model order.
        left_out: (parameter, why it is not pruned).
        parameters: of the whole network.
    """

    method: str
    fc: str
    target: float | None
    step: int
    first_step: int
    last_step: int
    layers: tuple[LayerSummary, ...]
    left_out: tuple[tuple[str, str], ...]
    parameters: int

    @property
    def prunable(self) -> int:
        """The number of weights in all pruned layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """The number of dead weights."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity_prunable(self) -> float:
        """Dead weights over the weights of pruned layers."""
        return self.zeros / max(1, self.prunable)

    @property
    def sparsity_total(self) -> float:
        """Dead weights over all parameters."""
        return self.zeros / max(1, self.parameters)

    @property
    def phase(self) -> str:
        """The state of the era, in words."""
        if self.step < self.last_step:
            when = "before" if self.step < self.first_step else "in"
            return f"step {self.step}, {when} the era {self.first_step}:{self.last_step}"
        return f"step {self.step}, after the era {self.first_step}:{self.last_step}: the masks are fixed"

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        aim = "" if self.target is None else f" target {self.target:g}"
        rows = [
            f"{x.name:{width}}  {x.kind:9}  {shape_text(x.shape):>14}  {x.weights:>10,}  {x.sparsity:7.2%}"
            for x in self.layers
        ]
        total = f"{self.sparsity_prunable:.2%} of {self.prunable:,} weights are dead ({self.phase})"
        left = [f"left out: {name}: {why}" for name, why in self.left_out]
        return "\n".join([f"{self.method}, fc {self.fc}{aim}", *rows, total, *left])

    def _repr_html_(self) -> str:
        aim = "" if self.target is None else f", target {self.target:g}"
        return table(
            f"{self.method}, fc {self.fc}{aim}: {self.phase}",
            ("layer", "kind", "shape", "weights", "dead"),
            [(x.name, x.kind, shape_text(x.shape), f"{x.weights:,}", f"{x.sparsity:.2%}") for x in self.layers],
            ("all", "", "", f"{self.prunable:,}", f"{self.sparsity_prunable:.2%}"),
            [f"left out: {name}: {why}" for name, why in self.left_out],
        )
