"""What a run is going to do: layer by layer, what its method and target come to, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starfire_cli.errors import BadOption
from starfire_cli.pruning import ConvBudget, Goal, Layer, LinearBudget, Pruner
from starfire_cli.records import PlanLayer
from starfire_cli.workflows.request import Pruning


def plan_layers(pruner: Pruner, pruning: Pruning, macs: Mapping[str, int]) -> tuple[PlanLayer, ...]:
    """The rows of the plan. Raises BadOption where a layer would lose everything, and says what would work."""
    goal = Goal(target=pruning.target)
    rows = []
    for layer, left in pruner.plan():
        method = pruning.linear if layer.kind == "linear" else pruning.conv
        rows.append(
            PlanLayer(
                name=layer.name,
                kind="depthwise" if layer.depthwise else layer.kind,
                shape=layer.shape,
                rule=rule_in_words(layer, method.budget(layer, goal)),
                weights=layer.weights,
                left=left,
                macs=macs.get(layer.name, 0),
            )
        )
    # What came in without a live weight has nothing to lose.
    masks = [pruner.masks[layer.key] for layer in pruner.layers]
    if emptied := [row.name for row, mask in zip(rows, masks, strict=True) if not row.left and mask.any()]:
        raise BadOption(_too_sparse(pruner.layers, pruning, emptied))
    return tuple(rows)


def rule_in_words(layer: Layer, budget: ConvBudget | LinearBudget | None) -> str:
    """A budget for people."""
    parts = []
    match budget:
        case ConvBudget(in_window=in_window, kernels=kernels):
            competitors = layer.shape[0] // layer.groups
            if in_window:
                parts.append(f"{in_window}/{layer.window} of a window")
            if kernels:
                parts.append(
                    f"{kernels}/{competitors} {'weights' if layer.kind == 'pointwise' else 'kernels'} of an input"
                )
        case LinearBudget(tiles=tiles, weights=weights, tile=tile):
            if tiles:
                parts.append(f"{tiles} {tile}x{tile} tiles")
            if weights:
                parts.append(f"{weights}/{layer.weights} weights{' in all' if tiles else ''}")
    return " + ".join(parts) or "nothing new"


def _too_sparse(layers: Sequence[Layer], pruning: Pruning, emptied: list[str]) -> str:
    shown = ", ".join(emptied[:3]) + (f" and {len(emptied) - 3} more" if len(emptied) > 3 else "")
    works = next(
        (t / 1000 for t in range(int(pruning.target * 1000), -1, -1) if not _empties(layers, pruning, t / 1000)), 0.0
    )
    return (
        f"--target {pruning.target:g} with --method {pruning.method_spec} leaves nothing of {shown}; "
        f"at most --target {works:g} leaves something everywhere, or exempt layers with --keep-dense"
    )


def _empties(layers: Sequence[Layer], pruning: Pruning, target: float) -> bool:
    for layer in layers:
        budget = pruning.conv.budget(layer, Goal(target=target)) if layer.kind != "linear" else None
        if budget is not None and (
            budget.in_window >= layer.window or budget.kernels >= layer.shape[0] // layer.groups
        ):
            return True
    return False
