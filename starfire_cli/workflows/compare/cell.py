"""Runs one cell: trains it, or goes on with it, and measures what came out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starfire_cli.damage import reading
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.run import Run
from starfire_cli.records.compare import CellDone, CellFigures, CellProgress, CompareCell, CompareNote
from starfire_cli.records.flops import inference_flops, training_flops
from starfire_cli.records.train import EpochRecord, Finished, Started, StepRecord, Stopped
from starfire_cli.workflows.compare.folder import CompareFolder
from starfire_cli.workflows.compare.measure import packed_size, robustness
from starfire_cli.workflows.compare.memory import gpu_memory, peak_memory
from starfire_cli.workflows.train.request import TrainRequest

CellRecord = CellProgress | CompareNote | CellDone | Stopped


@dataclass(frozen=True, kw_only=True)
class CellJob:
    """The job of one cell: its training and its measurements.

    Args:
        cell: the cell.
        folder: of the comparison.
        request: of `starfire train`.
        given: its fields that count as given.
        checkpoint: "last" or "best", which is measured.
        eps: at which it is attacked; None for no attack.
        images: to attack; None for all.
        pack: whether its packed size is measured.
        alone: whether the process does nothing else, so that its peak of memory is the cell's.
    """

    cell: CompareCell
    folder: Path
    request: TrainRequest
    given: frozenset[str]
    checkpoint: str
    eps: str | None
    images: int | None
    pack: bool
    alone: bool = True

    def as_plain(self) -> dict[str, Any]:
        """Plain values for another process."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return own | {
            "cell": dataclasses.asdict(self.cell),
            "folder": str(self.folder),
            "request": self.request.as_config(),
            "command": self.request.command,
            "given": sorted(self.given),
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> CellJob:
        """The inverse of `as_plain`."""
        request = TrainRequest.from_config(values["request"])
        own = {key: value for key, value in values.items() if key != "command"}
        return cls(
            **own
            | {
                "cell": CompareCell(**values["cell"]),
                "folder": Path(values["folder"]),
                "request": replace(request, command=values["command"]),
                "given": frozenset(values["given"]),
            }
        )

    @property
    def run(self) -> Run:
        """The run folder."""
        return CompareFolder(self.folder).run_of(self.cell)

    @property
    def network(self) -> Path:
        """The checkpoint that is measured."""
        return self.run.last if self.checkpoint == "last" else self.run.best

    def missing(self, figures: CellFigures) -> tuple[str, ...]:
        """The measurements that a trained cell still lacks: "pack", "attack"."""
        eps = self.eps.split(",") if self.eps is not None else []
        robust = figures.robustness
        attacked = not eps or (robust is not None and all(robust.at(label.strip()) is not None for label in eps))
        return (*(("pack",) if self.pack and figures.packed_bytes is None else ()), *(() if attacked else ("attack",)))


def run_cell(job: CellJob) -> Generator[CellRecord, None, None]:
    """Train the cell unless that is done, go on with it where it was stopped, and measure what is not yet measured.

    Yields `CellDone` at last, or train's `Stopped` after a signal. Every result is written as soon as it is there.

    Raises BadOption, StarfireError: it cannot be trained. What cannot be measured is a note.
    """
    folder = CompareFolder(job.folder)
    figures = folder.read_figures(job.cell, job.checkpoint)
    if figures is None:
        figures = yield from _trained(job)
        if figures is None:
            return
        folder.write_figures(job.cell, job.checkpoint, figures)
    for what in job.missing(figures):
        try:
            figures = yield from _measured(job, figures, what)
        except StarfireError as error:
            yield CompareNote(text=f"{job.cell.name}: no {what}: {error}")
            continue
        folder.write_figures(job.cell, job.checkpoint, figures)
    yield CellDone(cell=job.cell, figures=figures)


def _trained(job: CellJob) -> Generator[CellRecord, None, CellFigures | None]:
    """The figures of the trained network; None where a signal came before it was."""
    from starfire_cli.workflows.train.loop import train

    request = replace(job.request, resume=Path("auto"))
    epochs, per_epoch = job.request.epochs or 1, 1
    top1, finished = "", None
    with contextlib.closing(train(request, job.given)) as records:  # whoever closes us lets go of the folder, too
        for record in records:
            match record:
                case Started():
                    epochs, per_epoch = record.epochs, record.steps_per_epoch
                    yield CellProgress(cell=job.cell, done=record.step / per_epoch, total=epochs, text="training")
                case StepRecord():
                    text = top1 or f"loss {record.loss:.3f}"
                    yield CellProgress(cell=job.cell, done=record.step / per_epoch, total=epochs, text=text)
                case EpochRecord():
                    top1 = f"top-1 {record.val_top1:.2%}"
                    yield CellProgress(
                        cell=job.cell,
                        done=record.epoch,
                        total=epochs,
                        text=top1,
                        memory=peak_memory() if job.alone else None,
                        gpu=gpu_memory() if job.alone else None,
                    )
                case Stopped():
                    yield record
                    return None
                case Finished():
                    finished = record
    assert finished is not None
    return _figures(job, finished)


def _figures(job: CellJob, finished: Finished) -> CellFigures:
    run = job.run
    rows = run.read_metrics()
    if len(rows) < finished.epochs:
        raise StarfireError(
            f"{run.metrics_path} has {len(rows)} rows for {finished.epochs} epochs; remove {run.path}, and the cell is "
            "trained again"
        )
    with reading(run.metrics_path):
        measured = rows[-1] if job.checkpoint == "last" else _row_of(run.best, rows)
        return CellFigures(
            top1=float(measured["val_top1"]),
            top1_best=finished.val_top1,
            sparsity_prunable=float(measured["sparsity_prunable"]),
            sparsity_total=float(measured["sparsity_total"]),
            epochs=finished.epochs,
            training_flops=training_flops(rows),
            inference_flops=inference_flops([measured]),
            seconds=finished.seconds,
            memory=peak_memory() if job.alone else None,
            threads=_threads(run),
            curve=tuple(float(row["val_top1"]) for row in rows),
            facts={
                key: value for key, value in run.read_config().items() if key in ("command", "versions", "hardware")
            },
        )


def _row_of(checkpoint: Path, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    epoch = load(checkpoint).meta.metrics.epoch
    return next(row for row in reversed(rows) if row["epoch"] == epoch)


def _threads(run: Run) -> int | None:
    hardware = run.read_config().get("hardware")
    threads = hardware.get("threads") if isinstance(hardware, dict) else None
    return threads if isinstance(threads, int) else None


def _measured(job: CellJob, figures: CellFigures, what: str) -> Generator[CellRecord, None, CellFigures]:
    total = figures.epochs

    def progress(text: str) -> CellProgress:
        return CellProgress(cell=job.cell, done=total, total=total, text=text)

    if what == "pack":
        yield progress("packing")
        return replace(figures, packed_bytes=packed_size(job.network))
    assert job.eps is not None
    sweep = robustness(job.network, job.eps, job.request, job.images)
    yield progress("attacking")
    while True:
        try:
            share = next(sweep)
        except StopIteration as end:
            found = end.value
            break
        yield progress(f"attacking {share:.0%}")
    return replace(figures, robustness=found)
