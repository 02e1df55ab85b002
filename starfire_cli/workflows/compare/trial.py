"""Tries every method before anything is trained: whether its request makes sense, and what its training costs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGINT

from starfire_cli.errors import StarfireError
from starfire_cli.records.train import EpochRecord, Stopped
from starfire_cli.workflows.train.describe import plan_of
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.resume import open_session
from starfire_cli.workflows.train.tickets import rewind_in_epochs

_STEPS = 2000  # of a pilot run
_BATCH = 2  # images


@dataclass(frozen=True, kw_only=True)
class MethodTrial:
    """The length and the cost of the training that a request asks for.

    Args:
        epochs: that it trains, or that each of its rounds has.
        steps_per_epoch: of its optimizer.
        macs: multiply-accumulates of one image by the dense network.
    """

    epochs: int
    steps_per_epoch: int
    macs: int


def try_request(request: TrainRequest, given: frozenset[str]) -> MethodTrial:
    """Set the run up on the CPU, as `--dry-run` does. Raises BadOption, StarfireError for what cannot be trained."""
    own = replace(request, device="cpu", amp=None, compile=False, cuda_graphs="off", dry_run=True, kernels="auto")
    session = open_session(own, given)
    plan = plan_of(session)
    return MethodTrial(
        epochs=session.optimisation.epochs_a_round, steps_per_epoch=session.optimisation.steps_per_epoch, macs=plan.macs
    )


def training_cost(request: TrainRequest, given: frozenset[str], trial: MethodTrial) -> float:
    """Training FLOPs over those of the dense network in as many `--epochs`, from a pilot run through all rounds.

    The pilot has the request's epochs and, unless these come to more than 2000, its steps, with two images in each and
    a learning rate of 0: masks change as they will in the run, as far as they do not depend on what is learned.

    Raises BadOption, StarfireError.
    """
    steps = min(trial.steps_per_epoch, max(4, _STEPS // trial.epochs))
    spent, images = 0, _BATCH * steps * trial.epochs
    with tempfile.TemporaryDirectory(prefix="starfire-pilot-") as folder:
        pilot = replace(
            request,
            method=rewind_in_epochs(request.method, trial.steps_per_epoch),
            epochs=trial.epochs,
            batch_size=_BATCH,
            limit_train=_BATCH * steps,
            limit_val=_BATCH,
            lr=0.0,
            accumulate=1,
            adversarial=None,
            clip_grad=None,
            ema=None,
            amp=False,
            compile=False,
            cuda_graphs="off",
            compact_state=False,
            eliminate=False,
            save_every=None,
            workers=0,
            out=Path(folder),
            name="pilot",
        )
        for record in train(pilot, given | {"epochs", "batch_size", "limit_train", "limit_val", "lr"}):
            if isinstance(record, Stopped):
                raise KeyboardInterrupt if record.signal == SIGINT else SystemExit(128 + record.signal)
            if isinstance(record, EpochRecord):
                if record.train_macs is None:
                    raise StarfireError("this run does not count its multiply-accumulates")
                spent += record.train_macs
    return spent / max(1, images * trial.macs)
