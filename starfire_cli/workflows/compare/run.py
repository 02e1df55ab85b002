"""Compares methods: trains a grid of cells, measures them, and puts them side by side (docs/compare.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starfire_cli.attacks import Size, parse_sizes
from starfire_cli.errors import BadOption, StarfireError
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
from starfire_cli.workflows.compare.cells import BaseRequest, CellGroup, group_cells, in_order
from starfire_cli.workflows.compare.document import document_of, rows_of
from starfire_cli.workflows.compare.flops import equal_epochs
from starfire_cli.workflows.compare.folder import GROWING, CompareFolder, check_same
from starfire_cli.workflows.compare.measure import latency
from starfire_cli.workflows.compare.pool import PoolRecord, run_pool
from starfire_cli.workflows.compare.request import CompareRequest, parse_methods
from starfire_cli.workflows.compare.trial import MethodTrial, training_cost, try_request
from starfire_cli.workflows.train.settings import pruning_of
from starfire_cli.workflows.train.signals import Signals

_FREE = frozenset({"workers", "eval_batch_size", "save_every"})
"""Options of train that a comparison may change on its way: nothing that is measured depends on them."""


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
    methods = _specs(request, base)
    folder = CompareFolder(request.out)
    settings = _settings(request, base, methods)
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
        self._groups: tuple[CellGroup, ...] = ()
        self._pilot: dict[str, Any] | None = None
        self._figures: dict[CompareCell, CellFigures] = {}
        self._failed: list[CellFailed] = []
        self._document: dict[str, Any] = {}

    def run(self) -> Iterator[CompareRecord]:
        request = self._request
        notes: list[str] = []
        self._plan(notes)
        cells = in_order(self._groups)
        for cell in cells:
            found = self._folder.read_figures(cell, request.checkpoint)
            if found is not None:
                self._figures[cell] = found
        jobs = [self._job(cell) for cell in cells]
        waiting = [job for job in jobs if job.cell not in self._figures or job.missing(self._figures[job.cell])]
        if DENSE not in self._methods and request.equal == "epochs":
            notes.append("dense is not among the methods, so nothing is held against it")
        alone = request.jobs == 1 or (request.jobs is None and len(waiting) == 1)
        undone = {job.cell for job in waiting}
        yield CompareStarted(
            folder=self._folder.path,
            cells=cells,
            done=tuple(cell for cell in cells if cell not in undone),
            notes=tuple(notes),
        )
        self._write()
        with Signals() as signals:
            running = _here(waiting, signals) if alone else run_pool(waiting, request.jobs, signals)
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
            rows=rows_of(self._groups, self._figures, self._eps),
            eps=self._eps,
            failed=tuple(self._failed),
            document=self._document,
        )

    def _plan(self, notes: list[str]) -> None:
        """Decide on the cells; what has no run yet is tried first. Raises BadOption, StarfireError."""
        request = self._request
        groups = group_cells(self._methods, request.target, request.seeds)
        if request.equal == "epochs":
            for group in groups:
                if not any(self._folder.run_of(cell).config_path.exists() for cell in group.cells):
                    self._try(group)
            self._groups = groups
            return
        pilots = _known_pilots(self._earlier, [group.first for group in groups if group.first.target is not None])
        if pilots is None:
            pilots = self._pilots(groups)
        epochs: dict[tuple[str, float | None], int] = {}
        for target in request.target:
            own = {group.first.method: group.first.title for group in groups if group.first.target == target}
            costs = {DENSE: 1.0} | {method: pilots["costs"][title] for method, title in own.items()}
            each = equal_epochs(costs, pilots["epochs"])
            epochs |= {(method, target): count for method, count in each.items()}
            listed = ", ".join(f"{method} {count}" for method, count in each.items())
            notes.append(f"equal training FLOPs at target {target:g}, in epochs: {listed}")
        self._pilot = pilots
        methods = self._methods if DENSE in self._methods else (DENSE, *self._methods)
        self._groups = group_cells(methods, request.target, request.seeds, epochs)

    def _pilots(self, groups: Sequence[CellGroup]) -> dict[str, Any]:
        """What every method's training costs over dense, and the epochs asked for. Raises BadOption, StarfireError."""
        costs, epochs = {}, 0
        for group in groups:
            if group.first.target is not None:
                trial = self._try(group)
                own, given = self._base.of_cell(group.first, self._folder.path)
                costs[group.first.title], epochs = training_cost(own, given, trial), trial.epochs
        if not costs:
            raise BadOption("--equal flops needs a method that prunes; dense alone has nothing to be equal to")
        return {"epochs": epochs, "costs": costs}

    def _try(self, group: CellGroup) -> MethodTrial:
        own, given = self._base.of_cell(group.first, self._folder.path)
        try:
            return try_request(own, given)
        except StarfireError as error:
            raise type(error)(f"{group.first.title}: {error}") from error

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
        for group in self._groups:
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
        rows = rows_of(self._groups, self._figures, self._eps)
        self._document = self._folder.write(
            document_of(
                command=self._request.command,
                settings=self._settings,
                began=(self._earlier or {}).get("began"),
                pilots=self._pilot,
                groups=self._groups,
                figures=self._figures,
                rows=rows,
                eps=self._eps,
                failed=self._failed,
            )
        )

    def _stopped(self, signal: int, total: int) -> CompareStopped:
        done = sum(not self._job(cell).missing(figures) for cell, figures in self._figures.items())
        return CompareStopped(signal=signal, done=done, total=total, command=self._request.command)


def _here(jobs: Sequence[CellJob], signals: Signals) -> Iterator[PoolRecord]:
    """Run the jobs in this process, one after the other, until a signal comes."""
    for job in jobs:
        try:
            for record in run_cell(job):
                if isinstance(record, Stopped):
                    signals.number = record.signal
                else:
                    yield record
                if signals.number:  # also in the middle of an attack; what is done of it is saved
                    return
        except StarfireError as error:
            yield CellFailed(cell=job.cell, problem=str(error))


def _specs(request: CompareRequest, base: BaseRequest) -> tuple[str, ...]:
    """The methods' specs without what is default, dense first. Raises BadOption."""
    specs = []
    for text in parse_methods(request.methods):
        asked = replace(base.request, method=text, max_nonzero=None, fc=type(base.request).fc)
        specs.append(pruning_of(asked).method_spec)
    return tuple(dict.fromkeys(sorted(specs, key=lambda spec: spec != DENSE)))


def _settings(request: CompareRequest, base: BaseRequest, methods: Sequence[str]) -> dict[str, Any]:
    """What decides the cells' results; the same command has the same."""
    config = base.request.as_config()
    return {
        "methods": list(methods),
        "target": list(request.target),
        "seeds": list(request.seeds),
        "equal": request.equal,
        "checkpoint": request.checkpoint,
        **{name: config[name] for name in sorted(base.given - _FREE) if name in config},
    }


def _sizes(text: str) -> tuple[Size, ...]:
    return tuple(size for size in parse_sizes(text, "linf") if size.eps)


def _known_pilots(earlier: dict[str, Any] | None, cells: Sequence[CompareCell]) -> dict[str, Any] | None:
    """The pilots of an earlier call, if these cells all had one."""
    found = (earlier or {}).get("pilots")
    if not isinstance(found, dict) or not isinstance(found.get("costs"), dict) or not cells:
        return None
    costs = [found["costs"].get(cell.title) for cell in cells]
    sound = all(isinstance(cost, float) and 0 < cost < 100 for cost in costs)
    return found if sound and isinstance(found.get("epochs"), int) and found["epochs"] > 0 else None


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
