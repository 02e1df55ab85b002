"""Finishes a run: its closing record and, with `--eliminate`, one more checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from starfire_cli.damage import DamagedFile, reading
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.run import Run
from starfire_cli.networks.restore import build_loaded
from starfire_cli.pruning.channels.elimination import eliminate
from starfire_cli.records.train import Finished
from starfire_cli.workflows.train.session import Session


def finished(session: Session, run: Run) -> Finished:
    """The figures of the best checkpoint; with `--eliminate`, it is first written once more, that much smaller."""
    notes = _eliminated(session, run) if session.request.eliminate else ()
    if session.replica is not None:
        notes += session.replica.sending.report()
    best = files.load(run.best).meta.metrics  # not the rows of metrics.jsonl, of which some may be lost
    rows = run.read_metrics()
    with reading(run.metrics_path):
        rates = [float(row["images_per_second"]) for row in rows]
        seconds = sum(float(row["seconds"]) for row in rows)
    if best.val_top1 is None or best.sparsity_prunable is None or best.sparsity_total is None:
        raise DamagedFile(f"{run.best} is damaged: it does not say how good it is")
    return Finished(
        run=run.path,
        checkpoint=run.best,
        val_top1=best.val_top1,
        val_top5=best.val_top5 or 0.0,
        target=session.pruning.shown_target,
        sparsity_prunable=best.sparsity_prunable,
        sparsity_total=best.sparsity_total,
        epochs=session.optimisation.epochs if session.tickets is None else session.tickets.trained_epochs,
        seconds=seconds,
        images_per_second=sum(rates) / max(1, len(rates)),
        training_flops=_last(rows, "training_flops"),
        dense_flops=_last(rows, "dense_flops"),
        notes=notes,
    )


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> int | None:
    value = rows[-1].get(name) if rows else None
    return value if isinstance(value, int) else None


def _eliminated(session: Session, run: Run) -> tuple[str, ...]:
    """Write the best network again, without the linear weights that only see constants (section 2.1.2)."""
    best = files.load(run.best)
    net, _ = build_loaded(best, session.request.model or "", session.data.info)
    side = session.data.info.image_size
    report = eliminate(net, best.masks or {}, example=torch.zeros(1, 3, side, side))
    if report.declined:
        return (f"nothing was eliminated: {report.declined}",)
    files.save(run.eliminated, state=net.state_dict(), masks=report.masks, meta=best.meta.values)
    said = [f"eliminated {report.weights} linear weights that only see constants: {run.eliminated}"]
    for layer in report.layers:
        said += [f"{layer.layer}: {count} inputs stay, {reason}" for reason, count in layer.kept.items()]
    return tuple(said)
