"""Summarises a model in training: how sparse each layer is, and what the plan says of the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starfire_cli.pruning import NetworkMethod, Pruner
from starfire_cli.records.attach import LayerSummary, PruningSummary, planned_sparsity
from starfire_cli.records.train import PlanLayer
from starfire_cli.workflows.train.settings import Pruning


def summary_of(
    core: Pruner,
    pruning: Pruning,
    *,
    zeros: Mapping[str, int],
    step: int,
    left_out: Sequence[tuple[str, str]],
    plan: Sequence[PlanLayer] | None,
    parameters: int,
) -> PruningSummary:
    """The summary of a pruner.

    Args:
        core: whose layers and era.
        pruning: the methods and the target.
        zeros: dead weights by state-dict key.
        step: optimizer steps so far.
        left_out: (name, why it is not pruned).
        plan: the layers at the end of the era; None where the method tells in the end only.
        parameters: of the whole network.
    """
    # Methods of the whole network share weights out among layers as these turn out.
    fixed = plan if plan and not isinstance(pruning.conv, NetworkMethod) else ()
    planned = {row.name: row.sparsity for row in fixed}
    return PruningSummary(
        method=pruning.method_spec,
        fc=pruning.fc_spec,
        target=pruning.target if pruning.targeted else None,
        step=step,
        first_step=core.era.first_step,
        last_step=core.era.last_step,
        layers=tuple(
            LayerSummary(
                name=layer.name,
                kind=layer.kind,
                shape=layer.shape,
                weights=layer.weights,
                zeros=zeros[layer.key],
                planned=planned.get(layer.name),
            )
            for layer in core.layers
        ),
        left_out=tuple(left_out),
        planned=None if plan is None else planned_sparsity(plan),
        parameters=parameters,
    )
