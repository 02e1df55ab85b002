"""How a sparse network is trained (paper, Algorithm 2): a dense start, the pruning era, a fixed mask after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from starfire_cli import runtime
from starfire_cli.data import DataOptions
from starfire_cli.data.finding import url_of
from starfire_cli.data.images.workers import worker_failure
from starfire_cli.distributed import batchnorm
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import StarfireError
from starfire_cli.formats.run import Run
from starfire_cli.networks.evaluate import evaluate
from starfire_cli.networks.model_spec import runs_code
from starfire_cli.records.train import EpochRecord, Record, Started, Stopped
from starfire_cli.workflows.train.cuda_graph import StepGraph
from starfire_cli.workflows.train.describe import plan_of
from starfire_cli.workflows.train.finish import finished
from starfire_cli.workflows.train.meter import Meter, last_good
from starfire_cli.workflows.train.optim import set_rate
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.resume import open_session, save
from starfire_cli.workflows.train.run_folder import RunFolder
from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.signals import Signals
from starfire_cli.workflows.train.step import update

_SHOW_EVERY = 0.1  # seconds between step records; each fetches two numbers from the device


def train(
    request: TrainRequest,
    given: frozenset[str] = frozenset(),
    *,
    decoding: Callable[[str, int, int], None] | None = None,
) -> Iterator[Record]:
    """Train one network and yield what happens; on every rank, where several processes train it together.

    Args:
        request: what was asked for.
        given: which of its fields the user gave explicitly (a resumed run keeps its own for the others).
        decoding: told (what, done, all) while small images are decoded once, before anything is yielded.

    Raises StarfireError and BadOption with one clear line; what was saved before stays whole.
    """
    ranks = Ranks(runtime.world())
    with ranks.explaining(), ExitStack() as held:
        ranks.join()
        folder = RunFolder(held)
        session = open_session(request, given, decoding if ranks.first else None, ranks, folder)
        yield plan_of(session)
        if not request.dry_run:
            yield from _trained(session, folder)
        ranks.leave()


def _trained(session: Session, folder: RunFolder) -> Iterator[Record]:
    session.run = run = Run(session.ranks.only_first(lambda: folder.open(session)))
    if session.request.cuda_graphs:
        one = partial(update, session, look=lambda sums: None)
        session.graph = StepGraph(one, session.optimizer, session.pruner, session.request.batch_size or 0)
    yield Started(
        run=run.path,
        epoch=session.at.epoch,
        epochs=session.epochs,
        step=session.at.step,
        steps=session.steps,
        steps_per_epoch=session.steps_per_epoch,
        resumed=session.resumed,
        notes=(*session.notes, *folder.notes, *session.delays(), *session.data.info.notes),
    )
    try:
        with Signals() as signals, session.ranks.explaining(lambda: last_good(run)):
            yield from _epochs(session, run, signals)
    except torch.OutOfMemoryError as error:
        raise StarfireError(
            f"out of memory on {session.device} with --batch-size {session.request.batch_size}; a smaller one, "
            f"--accumulate 2 or --amp needs less. {last_good(run)}"
        ) from error
    except ValueError as error:  # beforehand nobody knows how many of a batch are corrupt (`lone_images.py`)
        if "more than 1 value per channel" not in str(error):
            raise
        raise StarfireError(
            f"step {session.at.step + 1} has one image left that is not corrupt, too few for BatchNorm; leave corrupt "
            f"images out of the data, or give another --batch-size. {last_good(run)}"
        ) from error
    except RuntimeError as error:  # torch tells of a killed worker inside whatever step is under way
        lost = worker_failure(error, session.request.workers, DataOptions().timeout)
        if lost is None:
            raise
        raise StarfireError(f"{lost}. {last_good(run)}") from error
    if not signals.stopped and session.ranks.first:
        yield finished(session, run)


def _epochs(session: Session, run: Run, signals: Signals) -> Iterator[Record]:
    while session.at.epoch < session.epochs:
        for record in _one_epoch(session, run, signals):
            yield record
            if isinstance(record, Stopped):
                signals.stopped = True
                return


def _one_epoch(session: Session, run: Run, signals: Signals) -> Iterator[Record]:
    at, pruner, request = session.at, session.pruner, session.request
    session.model.train()
    meter = Meter(session)
    pruner.seconds = at.mask_seconds
    shown = perf_counter()
    for images, labels in session.data.train.batches(at.epoch, start=at.batch):
        _step(session, meter, images, labels)
        at.batch += 1
        if pruner.era.last_step == at.step and session.pruning.target:
            session.agreement.masks()
            session.era_digests = pruner.digests()  # from now on no mask may change
            session.masks_are_fixed()
        now = perf_counter()
        if now - shown > _SHOW_EVERY:
            shown = now
            yield meter.record()
        at_limit = request.max_steps is not None and at.step >= request.max_steps and at.step < session.steps
        stop = signals.heard(session.ranks) or at_limit
        if stop or (request.save_every and at.step % request.save_every == 0):
            meter.settle()
            save(session, run.last, _metrics_so_far(session))
            if stop:
                yield _stopped(session, run, signals)
                return
    meter.settle()
    for net in (session.net, session.averaged):
        if net is not None:
            batchnorm.agree(net, session.ranks)
    trained = at.seconds
    started = perf_counter()
    accuracy = evaluate(
        session.evaluated,
        session.data.val,
        autocast=session.autocast,
        adversary=session.adversary,
        stop=lambda: bool(signals.heard(session.ranks)),
        ranks=session.ranks,
    )
    if accuracy is None:  # the epoch is trained but not measured: a resumed run measures it first
        save(session, run.last, _metrics_so_far(session))
        yield _stopped(session, run, signals)
        return
    prunable, total = session.sparsity()
    at.epoch += 1
    over = at.step >= pruner.era.last_step
    best = (over, accuracy.top1) > (at.best_over, at.best_top1)
    if best:  # a checkpoint that has reached its target beats every one that has not
        at.best_over, at.best_top1 = over, accuracy.top1
    record = EpochRecord(
        epoch=at.epoch,
        step=at.step,
        threshold=pruner.threshold(at.step),
        sparsity_prunable=prunable,
        sparsity_total=total,
        train_loss=at.loss_sum / max(1, at.images),
        train_top1=at.correct / max(1, at.images),
        val_loss=accuracy.loss,
        val_top1=accuracy.top1,
        val_top5=accuracy.top5,
        lr=session.rate.at(at.step - 1),
        images_per_second=at.images / trained if trained else 0.0,
        seconds=trained + perf_counter() - started,
        mask_seconds=at.mask_seconds,
        best=best,
        robust_top1=accuracy.robust_top1,
        gradient_bytes=session.replica.sending.a_step() if session.replica is not None else None,
        memory_bytes=torch.cuda.max_memory_allocated(session.device) if session.device.type == "cuda" else None,
    )
    row = {k: v for k, v in dataclasses.asdict(record).items() if k != "best" and v is not None}
    at.batch, at.images, at.loss_sum, at.correct, at.seconds, at.mask_seconds = 0, 0, 0.0, 0.0, 0.0, 0.0
    # The row first: a kill between the two leaves a row too many, which resuming drops, never a hole.
    before = run.append_metrics(row) if session.ranks.first else 0
    try:
        save(session, run.last, row)
    except BaseException:
        if session.ranks.first:
            run.cut_metrics(before)
        raise
    if best:
        save(session, run.best, row)
    yield record


def _step(session: Session, meter: Meter, images: Tensor, labels: Tensor) -> None:
    """One optimizer step: the update, then the era."""
    pruner, rate = session.pruner, session.rate.at(session.at.step)
    if session.graph is not None:
        meter.check()
        meter.add(session.graph.update(images, labels, rate), len(labels))
    else:
        set_rate(session.optimizer, rate)
        meter.add(update(session, images, labels, meter.check), len(labels))
    session.at.step += 1
    if session.compact is not None:
        session.compact.scatter()
    pruner.after_step(session.at.step)
    if pruner.era.evaluates_at(session.at.step):
        session.agreement.counts()
    if session.ema is not None:
        session.ema.update_parameters(session.model)


def _metrics_so_far(session: Session) -> dict[str, object]:
    prunable, total = session.sparsity()
    at = session.at
    return {"epoch": at.epoch, "step": at.step, "sparsity_prunable": prunable, "sparsity_total": total}


def _stopped(session: Session, run: Run, signals: Signals) -> Stopped:
    at = session.at
    model, data = session.request.model or "", session.request.data
    # What a file alone never makes happen is said again.
    unasked: tuple[str, ...] = ("--model", model) if runs_code(model) else ()
    unasked += ("--data", data) if data is not None and url_of(data) else ()
    return Stopped(
        signal=signals.agreed,
        checkpoint=run.last,
        command=("starfire", "train", "--resume", str(run.last), *unasked),
        epoch=at.epoch,
        step=at.step,
        steps=session.steps,
        loss=at.loss_sum / at.images if at.images else None,
        top1=at.correct / at.images if at.images else None,
        images_per_second=at.images / at.seconds if at.images and at.seconds else None,
    )
