"""Predicts the FLOPs of a training by live weights from its era and methods, before a step is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from starfire_cli.records.train import PlanLayer
from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.tickets import Tickets

_SAMPLES = 1 << 12  # steps that are looked at where there are more
_GOLDEN = 0.6180339887498949  # spreads them so that no clock of evaluations is always met or always missed

Dead = Mapping[str, float]
"""The share of each layer's weights that is dead, by key."""


def cost_share(session: Session, layers: Sequence[PlanLayer]) -> float | None:
    """The multiply-accumulates of training by live weights, over those of the dense network in as many steps.

    Args:
        session: a run before its first step.
        layers: its plan, whose sparsities it has in the end.

    Returns None where that depends on what is learned: where a penalty decides, and where channels are removed.
    """
    pruner, pruning, macs = session.pruner, session.pruning, session.network.macs
    dense = sum(macs.values())
    if pruning.shrinking is not None or (pruning.target and pruning.shown_target is None) or not dense:
        return None
    final = {layer.key: 1 - row.left / row.weights for layer, row in zip(pruner.layers, layers, strict=True)}
    came = {layer.key: pruner.zeros[layer.key] / layer.weights for layer in pruner.layers}
    tickets = session.tickets
    steps = _of_steps(session, final) if tickets is None else _of_rounds(tickets, pruning.target, final)
    spent = weighed = 0.0
    for weight, due, reads in steps:
        dead = {key: max(came[key], min(1.0, share)) for key, share in due.items()}
        lost = sum(macs.get(layer.name, 0) * dead[layer.key] for layer in pruner.layers)
        spent += weight * (dense - lost + lost * reads / 3)  # the pass to the weights is one of three
        weighed += weight
    return spent / (dense * weighed)


def _of_steps(session: Session, final: Dead) -> Iterator[tuple[float, Dead, bool]]:
    """(1, what is due, whether the gradients of dead weights are read) of steps all over the training."""
    pruner, steps = session.pruner, session.optimisation.steps
    ends = pruner.dead_shares(pruner.era.last_step)
    scale = {key: share / ends[key] if ends.get(key) else None for key, share in final.items()}
    count = min(steps, _SAMPLES)
    for number in range(count):
        step = number + 1 if count == steps else 1 + int((number + number * _GOLDEN % 1) / count * steps)
        shares = pruner.dead_shares(step - 1)  # the masks that the step meets
        due = {key: final[key] if by is None else shares[key] * by for key, by in scale.items()}
        yield 1.0, due, pruner.reads_gradients_at(step)


def _of_rounds(tickets: Tickets, target: float, final: Dead) -> Iterator[tuple[float, Dead, bool]]:
    """The same for each round, weighed by its steps."""
    for number in range(1, tickets.trainings + 1):
        due = tickets.rounds.sparsity(number - 1, target) / target
        length = tickets.steps - (tickets.first if number > 1 else 0)
        yield length, {key: share * due for key, share in final.items()}, False
