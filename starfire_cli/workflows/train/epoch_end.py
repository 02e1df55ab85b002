"""The end of an epoch: its accuracy is measured, its row is written, and its checkpoints are saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from time import perf_counter

import torch

from starfire_cli.distributed import batchnorm
from starfire_cli.networks.evaluate import evaluate
from starfire_cli.records.flops import TRAINING
from starfire_cli.records.train import EpochRecord, Stopped
from starfire_cli.workflows.train.live_macs import cost_so_far, epoch_macs
from starfire_cli.workflows.train.save import save, save_last
from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.signals import Signals
from starfire_cli.workflows.train.stop import stopped


def end_epoch(session: Session, signals: Signals) -> Iterator[EpochRecord | Stopped]:
    """Measure and save, and yield the epoch's record; or `Stopped`, where a signal comes meanwhile.

    All ranks come here. Raises Mismatch where masks are not what they have to be (see `save`).
    """
    for net in session.nets:
        batchnorm.agree(net, session.ranks)
    at, started = session.position, perf_counter()
    accuracy = evaluate(
        session.evaluated,
        session.data.val,
        autocast=session.precision.autocast,
        adversary=session.adversary,
        stop=lambda: bool(signals.pending(session.ranks)),
        ranks=session.ranks,
    )
    if accuracy is None:  # the epoch is trained but not measured: a resumed run measures it first
        save_last(session)
        yield stopped(session, signals)
        return
    prunable, total = session.sparsity()
    at.epoch += 1
    over = at.step >= session.pruner.era.last_step
    best = (over, accuracy.top1) > (at.best_over, at.best_top1)
    if best:  # a checkpoint that has reached its target beats every one that has not
        at.best_over, at.best_top1 = over, accuracy.top1
    device, (macs, train_macs) = session.network.device, epoch_macs(session, at.images)
    cost, seconds = cost_so_far(session, at.images), at.seconds + perf_counter() - started
    sparse = at.past.sparse_macs > 0
    record = EpochRecord(
        epoch=at.epoch,
        step=at.step,
        threshold=session.pruner.threshold(at.step),
        sparsity_prunable=prunable,
        sparsity_total=total,
        train_loss=at.loss_sum / max(1, at.images),
        train_top1=at.correct / max(1, at.images),
        val_loss=accuracy.loss,
        val_top1=accuracy.top1,
        val_top5=accuracy.top5,
        lr=session.optimisation.rate.at(at.step - 1),
        images_per_second=at.images / at.seconds if at.seconds else 0.0,
        seconds=seconds,
        mask_seconds=at.mask_seconds,
        best=best,
        macs=macs,
        train_macs=train_macs,
        training_flops=cost.training_flops,
        dense_flops=cost.dense_flops,
        elapsed_seconds=at.past.seconds + seconds if at.past.known else None,
        sparse_flops=TRAINING * at.past.sparse_macs if sparse else None,
        sparse_seconds=at.past.sparse_seconds if sparse else None,
        robust_top1=accuracy.robust_top1,
        gradient_bytes=session.replica.sending.a_step() if session.replica is not None else None,
        round=session.tickets.round if session.tickets is not None else None,
        memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        parameters=sum(p.numel() for p in session.network.net.parameters()) if session.shrinks else None,
    )
    at.end_epoch(train_macs, seconds)
    _write(session, record)
    yield record


def _write(session: Session, record: EpochRecord) -> None:
    row = {k: v for k, v in dataclasses.asdict(record).items() if k != "best" and v is not None}
    run, first = session.run, session.ranks.first
    # The row first: a kill between the two leaves a row too many, which resuming drops, never a hole.
    before = run.append_metrics(row) if first else 0
    tickets = session.tickets
    try:
        if tickets is not None and session.position.epoch == tickets.round * tickets.epochs:
            save(session, run.round_end(tickets.round), row)  # before `last`, from which a resumed run goes on
        save(session, run.last, row)
    except BaseException:
        if first:
            run.cut_metrics(before)
        raise
    if record.best:
        save(session, run.best, row)
