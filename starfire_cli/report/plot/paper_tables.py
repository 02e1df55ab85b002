"""The paper's tables 1, 2 and 5 to 8, filled from a set of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.records.plot import RunHistory
from starfire_cli.report.plot.groups import (
    Group,
    differ_only_by,
    group_runs,
    percent_text,
    pretty_method,
    row_names,
    row_order,
)
from starfire_cli.report.plot.table_cells import Cell, Measure, PaperTable, Setup, TableRow, cell_of
from starfire_cli.text import counted, epoch_text

_SIDE_BY_SIDE = 2  # methods, up to which table 5 is laid out as in the paper


def paper_tables(number: int, runs: Sequence[RunHistory], *, at: Sequence[int] = ()) -> list[PaperTable]:
    """The table, once for each set-up (network, data, image size, epochs) among the runs.

    Args:
        number: 1, 2, 5, 6, 7 or 8.
        runs: those that are not finished are left out, with a note.
        at: the epochs to read accuracies after; none: the last, and nine tenths of it (tables 2, 6 and 7).

    Raises:
        BadOption: there is no such table.
        StarfireError: no run has got far enough, or there is nothing to compare.
    """
    if number not in BUILDERS:
        raise BadOption(
            f"--table {number}: there are {', '.join(map(str, BUILDERS))} (3 is what starfire attack prints)"
        )
    setups: dict[tuple[object, ...], list[RunHistory]] = {}
    notes: list[str] = []
    for run in runs:
        if run.method == "?" or run.target is None or run.epochs is None:
            notes.append(f"{run.name} does not say what it is: left out.")
        elif not run.finished and (not at or not run.rows or run.rows[-1]["epoch"] < max(at)):
            done = round(run.rows[-1]["epoch"]) if run.rows else 0
            notes.append(f"{run.name} is at epoch {done} of {run.epochs}: left out.")
        else:
            setups.setdefault((run.model, run.data, run.settings.get("image_size"), run.epochs), []).append(run)
    if not setups:
        raise StarfireError(f"table {number} has no rows: {' '.join(notes[:3]) or 'no runs were given'}")
    several_sizes = len({size for _, _, size, _ in setups}) > 1
    made = []
    for (model, data, size, epochs), members in setups.items():
        late = int(str(epochs))
        name = f"{model} on {data}{f' at {size} px' if several_sizes else ''}, {counted(late, 'epoch')} in all"
        made.append(BUILDERS[number](Setup(name, group_runs(members), late, tuple(at))))
    found = [table for table in made if table.rows]
    if not found:
        raise StarfireError(f"table {number} has no rows: {_NEEDS[number]}")
    found[-1] = replace(found[-1], notes=(*found[-1].notes, *dict.fromkeys(notes)))
    return found


def _accuracy(setup: Setup, epoch: int, number: int) -> PaperTable:
    """Tables 1 and 6: top-1 after an epoch, by method and start, and by target."""
    return _by_target(
        setup, number, f"top-1 accuracy (%) after {counted(epoch, 'epoch')}", _after(epoch, "val_top1"), compare=True
    )


def _gain(setup: Setup) -> PaperTable:
    """Table 7: the gain by the last epochs."""
    early, late = _after(setup.early, "val_top1"), _after(setup.late, "val_top1")

    def gain(run: RunHistory) -> float | None:
        before, after = early(run), late(run)
        return None if before is None or after is None else after - before

    title = f"gain in top-1 accuracy (points) from epoch {setup.early} to {setup.late}"
    return _by_target(setup, 7, title, gain, unit="points")


def _by_target(
    setup: Setup, number: int, title: str, measure: Measure, *, compare: bool = False, unit: str = "accuracy"
) -> PaperTable:
    targets = sorted({group.first.target or 0.0 for group in setup.sparse})
    dense: list[TableRow] = []
    rows: dict[str, list[Cell | None]] = {}
    groups = sorted(setup.groups, key=row_order)
    for group, name in zip(groups, row_names(groups), strict=True):
        cell = cell_of(group, measure, unit)
        if cell is None:
            continue
        if group.first.dense:
            dense.append(TableRow(name=name, cells=(None,) * len(targets), own=cell))
            continue
        reference = cell_of(setup.dense_for(group), measure, unit) if compare else None
        if reference is not None:
            cell = replace(cell, difference=cell.mean - reference.mean)
        rows.setdefault(name, [None] * len(targets))[targets.index(group.first.target or 0.0)] = cell
    notes = setup.notes()
    if compare and setup.sparse and not all(setup.dense_for(group) for group in setup.sparse):
        notes.append("There is no dense run to compare with.")
    return PaperTable(
        number=number,
        title=title,
        setup=setup.name,
        columns=("Sparsity (%)", *map(_bare_percent, targets)),
        rows=(*dense, *(TableRow(name=name, cells=tuple(cells)) for name, cells in rows.items())),
        notes=tuple(notes),
    )


def _two_lengths(setup: Setup) -> PaperTable:
    """Table 2: true sparsity and top-1 after two epochs."""
    epochs = sorted({setup.early, setup.late})
    rows = []
    for group in setup.groups:
        pairs = [
            (cell_of(group, _after(e, "sparsity_prunable"), "sparsity"), cell_of(group, _after(e, "val_top1")))
            for e in epochs
        ]
        if any(accuracy for _, accuracy in pairs):
            rows.append(TableRow(name=group.label, cells=tuple(cell for pair in pairs for cell in pair)))
    return PaperTable(
        number=2,
        title="true sparsity and top-1 accuracy",
        setup=setup.name,
        spans=(("", 1), *((f"Epoch {epoch}", 2) for epoch in epochs)),
        columns=("Model", *(["Sparsity (%)", "Accuracy (%)"] * len(epochs))),
        rows=tuple(rows),
        notes=tuple(setup.notes()),
    )


def _true_sparsity(setup: Setup) -> PaperTable:
    """Table 5: best accuracy, its epoch and the true sparsity, by target; methods side by side if they are few."""
    columns = ("Accuracy (%)", "Epoch", "True sparsity (%)")
    names = row_names(setup.groups)
    methods = list(dict.fromkeys(name for name, g in zip(names, setup.groups, strict=True) if not g.first.dense))
    if 0 < len(methods) <= _SIDE_BY_SIDE:
        placed = {(name, g.first.target): g for name, g in zip(names, setup.groups, strict=True)}
        dense = next((g for g in setup.groups if g.first.dense), None)
        placed |= {(name, 0.0): dense for name in methods if dense}
        rows = tuple(
            TableRow(name=_bare_percent(t), cells=tuple(c for name in methods for c in _best_of(placed.get((name, t)))))
            for t in sorted({target or 0.0 for _, target in placed})
        )
        heads, spans = columns * len(methods), (("", 1), *((name, len(columns)) for name in methods))
    else:
        rows = tuple(TableRow(name=group.label, cells=_best_of(group)) for group in setup.groups)
        heads, spans = columns, ()
    return PaperTable(
        number=5,
        title="best top-1 accuracy, its epoch and true sparsity",
        setup=setup.name,
        spans=spans,
        columns=("Sparsity (%)" if spans else "Model", *heads),
        rows=tuple(row for row in rows if any(row.cells)),
        notes=tuple(setup.notes()),
    )


def _best_of(group: Group | None) -> tuple[Cell | None, ...]:
    kinds = (("val_top1", "accuracy"), ("epoch", "epoch"), ("sparsity_prunable", "sparsity"))
    return tuple(cell_of(group, _in_best(key), unit) for key, unit in kinds)


def _other_drops(setup: Setup) -> PaperTable:
    """Table 8: the effect of an earlier last drop of the learning rate."""
    alike: dict[object, list[Group]] = {}
    for group in setup.groups:
        alike.setdefault(differ_only_by("lr_drops", group), []).append(group)
    after, rows = _after(setup.late, "val_top1"), []
    for members in alike.values():
        usual, *others = sorted(members, key=lambda g: g.first.lr_drops[::-1], reverse=True)
        reference = cell_of(usual, after)
        for group in others:
            cell = cell_of(group, after)
            if cell and reference:
                name = f"{_bare_name(group)}, {_drops(group)} against {_drops(usual)}"
                rows.append(TableRow(name=name, cells=(replace(cell, difference=cell.mean - reference.mean),)))
    return PaperTable(
        number=8,
        title=f"top-1 accuracy after {counted(setup.late, 'epoch')} with other drops of the learning rate",
        setup=setup.name,
        columns=("Experiment", "Accuracy (improvement) (%)"),
        rows=tuple(rows),
        notes=tuple(setup.notes()),
    )


def _bare_name(group: Group) -> str:
    run = group.first
    if run.dense:
        return "Dense"
    if run.era is None or run.target is None:
        return group.label
    return f"{pretty_method(run.method)} {percent_text(run.target)}, start {epoch_text(run.era[0])}"


def _drops(group: Group) -> str:
    return "drops " + ("-".join(f"{drop:g}" for drop in group.first.lr_drops) or "none")


def _after(epoch: int, key: str) -> Measure:
    return lambda run: run.at(epoch, key)


def _in_best(key: str) -> Measure:
    return lambda run: (run.best() or {}).get(key)


def _bare_percent(share: float) -> str:
    return percent_text(share).removesuffix(" %")


BUILDERS: dict[int, Callable[[Setup], PaperTable]] = {
    1: lambda setup: _accuracy(setup, setup.late, 1),
    2: _two_lengths,
    5: _true_sparsity,
    6: lambda setup: _accuracy(setup, setup.early, 6),
    7: _gain,
    8: _other_drops,
}
_NEEDS = {
    **dict.fromkeys((1, 6), "no run has a validation top-1 after the epoch asked for (--at)"),
    2: "no run has a row for the epochs asked for (--at)",
    5: "no run has a validation top-1",
    7: "no run has a validation top-1 after both epochs (--at EARLY,LATE)",
    8: "it compares runs that differ by --lr-drops alone, and there are none among these",
}
