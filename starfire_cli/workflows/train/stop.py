"""The record of a run that stops before its last epoch, and the command by which it goes on."""

from __future__ import annotations

from starfire_cli.data.finding import only_asked
from starfire_cli.networks.model_spec import runs_code
from starfire_cli.records.train import Stopped
from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.signals import Signals


def stopped(session: Session, signals: Signals) -> Stopped:
    """The record of where the run stands, after its checkpoint was saved; nothing trains after this."""
    signals.stop()
    at, last = session.position, session.run.last
    model, data = session.request.model or "", session.request.data
    # What a file alone never makes happen is said again.
    unasked: tuple[str, ...] = ("--model", model) if runs_code(model) else ()
    unasked += ("--data", data) if data is not None and only_asked(data) else ()
    return Stopped(
        signal=signals.agreed,
        checkpoint=last,
        command=("starfire", "train", "--resume", str(last), *unasked),
        epoch=at.epoch,
        step=at.step,
        steps=session.optimisation.steps,
        loss=at.loss_sum / at.images if at.images else None,
        top1=at.correct / at.images if at.images else None,
        images_per_second=at.images / at.seconds if at.images and at.seconds else None,
    )
