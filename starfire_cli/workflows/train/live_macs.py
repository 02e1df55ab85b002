"""Counts multiply-accumulates by live weights: of one image, of an epoch by the masks it met, and of the run so far."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.records.flops import TRAINING
from starfire_cli.workflows.train.layer_macs import live_macs_by_layer
from starfire_cli.workflows.train.session import Session


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs of training so far: by live weights, and by the network that the run began with had it stayed dense; both
    None where an earlier version began the run, which did not add them up.
    """

    training_flops: int | None
    dense_flops: int | None


def count_live_macs(session: Session) -> int:
    """Multiply-accumulates of one image by live weights. Waits for the device."""
    return sum(live_macs_by_layer(session.network.macs, session.pruner).values())


def note_live_macs(session: Session) -> None:
    """Note the count where an epoch's sum needs it: at its start and after its first step. Called before every step."""
    at = session.position
    if at.step == 0:
        at.dense_macs = sum(session.network.macs.values())
    if at.batch == 0:
        at.start_macs = count_live_macs(session)
    elif at.first_macs is None:
        at.first_macs = count_live_macs(session)
    if session.pruner.reads_gradients:
        live = at.start_macs if at.first_macs is None else at.first_macs
        at.read_macs += sum(session.network.macs.values()) - (live or 0)


def cost_so_far(session: Session, images: int) -> Cost:
    """The cost of training until now, of which `images` of the epoch under way. Waits for the device."""
    at = session.position
    if not at.past.known or at.dense_macs is None:
        return Cost(training_flops=None, dense_flops=None)
    macs = at.past.macs + epoch_macs(session, images)[1]
    return Cost(training_flops=TRAINING * macs, dense_flops=TRAINING * at.dense_macs * (at.past.images + images))


def epoch_macs(session: Session, images: int) -> tuple[int, int]:
    """(multiply-accumulates of one image now, those of one pass over `images` of the epoch with the masks they met).

    The first step has the masks of the start. Those after the first step and at the end are counted, and those between
    are taken to lie evenly between them. A step that reads the gradients of dead weights takes the pass back to the
    weights, one of a step's three, through all of them.
    """
    at, now = session.position, count_live_macs(session)
    end = now if at.end_macs is None else at.end_macs
    start = end if at.start_macs is None else at.start_macs
    first = end if at.first_macs is None else at.first_macs
    steps = max(1, at.batch)
    twice = 2 * start + 2 * (steps - 1) * first + (steps - 2) * (end - first)
    return now, images * (3 * twice + 2 * at.read_macs) // (6 * steps)
