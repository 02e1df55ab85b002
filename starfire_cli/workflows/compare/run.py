"""Compares methods: trains a grid of cells, measures them, and puts them side by side (docs/compare.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starfire_cli.attacks import Size, parse_sizes
from starfire_cli.errors import StarfireError
from starfire_cli.formats.run_lock import locked
from starfire_cli.labels import DENSE
from starfire_cli.options import check
from starfire_cli.records.compare import (
    CellDone,
    CellFailed,
    CellFigures,
    CellProgress,
    CompareCell,
    Compared,
    CompareNote,
    CompareRecord,
    CompareStarted,
    CompareStopped,
)
from starfire_cli.records.train import Stopped
from starfire_cli.workflows.compare.cell import CellJob, run_cell
from starfire_cli.workflows.compare.cells import BaseRequest, in_order
from starfire_cli.workflows.compare.document import document_of, rows_of
from starfire_cli.workflows.compare.folder import CompareFolder
from starfire_cli.workflows.compare.measure import latency
from starfire_cli.workflows.compare.plan import ComparePlan, plan_cells
from starfire_cli.workflows.compare.pool import PoolRecord, run_pool
from starfire_cli.workflows.compare.request import CompareRequest
from starfire_cli.workflows.compare.settings import GROWING, check_same, method_specs, settings_of
from starfire_cli.workflows.train.signals import Signals


def compare(request: CompareRequest, base: BaseRequest) -> Iterator[CompareRecord]:
    """Train and measure what is missing; yields progress, and at last the result, which by then is on disk.

    Args:
        request: what was asked for.
        base: what `starfire train` is asked for in all cells.

    Raises BadOption, StarfireError: one line; whatever was finished stays.
    """
    check(request)
    base.check(request.equal)
    eps = tuple(size.label for size in _sizes(request.eps)) if request.attack else ()
    methods = method_specs(request, base)
    folder = CompareFolder(request.out)
    settings = settings_of(request, base, methods)
    earlier = folder.read()
    if earlier is not None:
        check_same(
            earlier["settings"], settings, request.out, growing=GROWING if request.equal == "epochs" else ("seeds",)
        )
    with _made(request.out), locked(request.out, request.command, noun="filled", again="give the same command"):
        comparison = _Comparison(request, base, methods, eps, folder, settings, earlier)
        yield from comparison.run()


class _Comparison:
    """One call: what is planned, and the figures as they come."""

    def __init__(
        self,
        request: CompareRequest,
        base: BaseRequest,
        methods: Sequence[str],
        eps: tuple[str, ...],
        folder: CompareFolder,
        settings: dict[str, Any],
        earlier: dict[str, Any] | None,
    ) -> None:
        self._request, self._base, self._eps, self._folder = request, base, eps, folder
        self._methods, self._settings, self._earlier = methods, settings, earlier
        self._plan = ComparePlan()
        self._figures: dict[CompareCell, CellFigures] = {}
        self._failed: list[CellFailed] = []
        self._document: dict[str, Any] = {}

    def run(self) -> Iterator[CompareRecord]:
        request = self._request
        plan = self._plan = plan_cells(request, self._base, self._methods, self._folder, self._earlier)
        cells, notes = in_order(plan.groups), list(plan.notes)
        for cell in cells:
            found = self._folder.read_figures(cell, request.checkpoint)
            if found is not None:
                self._figures[cell] = found
        jobs = [self._job(cell) for cell in cells]
        waiting = [job for job in jobs if job.cell not in self._figures or job.missing(self._figures[job.cell])]
        if DENSE not in self._methods and request.equal == "epochs":
            notes.append("dense is not among the methods, so nothing is held against it")
        undone = {job.cell for job in waiting}
        yield CompareStarted(
            folder=self._folder.path,
            cells=cells,
            done=tuple(cell for cell in cells if cell not in undone),
            notes=tuple(notes),
        )
        self._write()
        with Signals() as signals:
            running = _here(waiting, signals) if request.jobs == 1 else run_pool(waiting, request.jobs, signals)
            with contextlib.closing(running):
                for record in running:
                    yield record
                    if isinstance(record, CellDone):
                        self._figures[record.cell] = record.figures
                        self._write()
                    elif isinstance(record, CellFailed):
                        self._failed.append(record)
                        self._write()
            if not signals.number and request.latency:
                yield from self._time(signals)
            if signals.number:
                yield self._stopped(signals.number, len(cells))
                return
        self._write()
        yield Compared(
            folder=self._folder.path,
            rows=rows_of(self._plan.groups, self._figures, self._eps),
            eps=self._eps,
            failed=tuple(self._failed),
            document=self._document,
        )

    def _job(self, cell: CompareCell) -> CellJob:
        request = self._request
        own, given = self._base.of_cell(cell, self._folder.path)
        return CellJob(
            cell=cell,
            folder=self._folder.path,
            request=own,
            given=given,
            checkpoint=request.checkpoint,
            eps=",".join(self._eps) if request.attack else None,
            images=request.attack_images,
            pack=request.pack,
            alone=request.jobs != 1,
        )

    def _time(self, signals: Signals) -> Iterator[CompareRecord]:
        """Time the first seed of every row, one after the other, with nothing beside."""
        for group in self._plan.groups:
            cell = next((cell for cell in group.cells if cell in self._figures), None)
            if cell is None or signals.number or self._figures[cell].latency is not None:
                continue
            figures, job = self._figures[cell], self._job(cell)
            yield CellProgress(cell=cell, done=figures.epochs, total=figures.epochs, text="timing")
            try:
                figures = replace(figures, latency=latency(job.network, job.request))
            except StarfireError as error:
                yield CompareNote(text=f"{cell.name}: no latency: {error}")
                continue
            self._figures[cell] = figures
            self._folder.write_figures(cell, self._request.checkpoint, figures)
            yield CellDone(cell=cell, figures=figures)

    def _write(self) -> None:
        rows = rows_of(self._plan.groups, self._figures, self._eps)
        self._document = self._folder.write(
            document_of(
                command=self._request.command,
                settings=self._settings,
                began=(self._earlier or {}).get("began"),
                pilots=self._plan.pilots,
                groups=self._plan.groups,
                figures=self._figures,
                rows=rows,
                eps=self._eps,
                failed=self._failed,
            )
        )

    def _stopped(self, signal: int, total: int) -> CompareStopped:
        done = sum(not self._job(cell).missing(figures) for cell, figures in self._figures.items())
        return CompareStopped(signal=signal, done=done, total=total, command=self._request.command)


def _here(jobs: Sequence[CellJob], signals: Signals) -> Generator[PoolRecord, None, None]:
    """Run the jobs in this process, one after the other, until a signal comes."""
    for job in jobs:
        try:
            with contextlib.closing(run_cell(job)) as records:
                for record in records:
                    if isinstance(record, Stopped):
                        signals.number = record.signal
                    else:
                        yield record
                    if signals.number:  # also in the middle of an attack; what is done of it is saved
                        return
        except StarfireError as error:
            yield CellFailed(cell=job.cell, problem=str(error))


def _sizes(text: str) -> tuple[Size, ...]:
    return tuple(size for size in parse_sizes(text, "linf") if size.eps)


@contextlib.contextmanager
def _made(path: Path) -> Iterator[None]:
    """The folder; it goes again if nothing comes of it."""
    there = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StarfireError(f"cannot make the folder {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
