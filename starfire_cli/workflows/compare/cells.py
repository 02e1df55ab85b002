"""Cells and rows of a comparison: which runs there are, and what `starfire train` is asked for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starfire_cli.errors import BadOption
from starfire_cli.labels import DENSE
from starfire_cli.options import declared
from starfire_cli.records.compare import CompareCell
from starfire_cli.text import command_text
from starfire_cli.workflows.train.request import TrainRequest

CHOSEN = {"method": "--methods", "target": "--target", "seed": "--seeds", "out": "--out"}
"""Fields of a training request that a comparison chooses, and the option that says so."""

_ALONE = ("name", "resume", "max_steps", "dry_run", "batch_size_per_device")
_PRUNING_ONLY = ("fc", "max_nonzero")

Epochs = Mapping[tuple[str, float | None], int]


@dataclass(frozen=True, kw_only=True)
class BaseRequest:
    """The training request that all cells have in common.

    Args:
        request: of `starfire train`, with defaults where nothing was given.
        given: the fields that were given.
    """

    request: TrainRequest
    given: frozenset[str]

    def check(self, equal: str) -> None:
        """Raises BadOption for options of `train` that a comparison chooses itself or cannot use."""
        for field in sorted(self.given):
            flag = f"--{field.replace('_', '-')}"
            if field in CHOSEN:
                raise BadOption(
                    f"{flag} {getattr(self.request, field)} after --: a comparison chooses it; {CHOSEN[field]}"
                )
            if field in _ALONE:
                raise BadOption(f"{flag} {getattr(self.request, field)} is for one run of starfire train; leave it out")
            if equal == "flops" and field in ("era", "lr_drops"):
                raise BadOption(
                    f"{flag} is in epochs, and with --equal flops methods have different numbers of them; leave it to "
                    "the recipe, which scales it along"
                )

    def of_cell(self, cell: CompareCell, folder: Path) -> tuple[TrainRequest, frozenset[str]]:
        """The request of one cell, whose run is in `folder`, and the fields that count as given."""
        own = {"method": cell.method, "seed": cell.seed, "out": folder, "name": cell.name}
        if cell.target is not None:
            own["target"] = cell.target
        if cell.epochs is not None:
            own["epochs"] = cell.epochs
        request, given = dataclasses.replace(self.request, **own), self.given | own.keys()  # type: ignore[arg-type]
        if cell.method == DENSE:  # the baseline, whatever is pruned in the others
            defaults = {name: getattr(TrainRequest, name) for name in _PRUNING_ONLY}
            request, given = dataclasses.replace(request, **defaults), given - {*_PRUNING_ONLY}
        return dataclasses.replace(request, command=_command(request, given)), given


@dataclass(frozen=True, kw_only=True)
class CellGroup:
    """The cells of one row, in order of their seeds, and the dense ones that they are held against."""

    cells: tuple[CompareCell, ...]
    dense: tuple[CompareCell, ...] = ()

    @property
    def first(self) -> CompareCell:
        """The cell of the first seed."""
        return self.cells[0]


def group_cells(
    methods: Sequence[str],
    targets: Sequence[float],
    seeds: Sequence[int],
    epochs: Epochs | None = None,
    untargeted: Collection[str] = (),
) -> tuple[CellGroup, ...]:
    """The rows of a comparison, dense first.

    Args:
        methods: specs; `dense` is held against the others, and has no target.
        targets: sparsities.
        seeds: of every method.
        epochs: of each (method, target) where they are not equal; of dense, those for each target.
        untargeted: methods that look at no target, and have one row unless their epochs differ.
    """

    def cells(method: str, target: float | None, own: int | None) -> tuple[CompareCell, ...]:
        return tuple(CompareCell(method=method, target=target, seed=seed, epochs=own) for seed in seeds)

    dense: dict[float, tuple[CompareCell, ...]] = {}
    if DENSE in methods:
        dense = {target: cells(DENSE, None, None if epochs is None else epochs[DENSE, target]) for target in targets}
    rows = [CellGroup(cells=own) for own in dict.fromkeys(dense.values())]
    for target in targets:
        for method in methods:
            if method != DENSE:
                own = cells(
                    method,
                    None if method in untargeted else target,
                    None if epochs is None else epochs[method, target],
                )
                rows.append(CellGroup(cells=own, dense=dense.get(target, ())))
    return tuple(dict.fromkeys(rows))


def in_order(groups: Sequence[CellGroup]) -> tuple[CompareCell, ...]:
    """All cells, the first seed of every row first, so that a comparison that is stopped early shows something."""
    return tuple(dict.fromkeys(cell for seed in zip(*(group.cells for group in groups), strict=True) for cell in seed))


def _command(request: TrainRequest, given: frozenset[str]) -> str:
    """`starfire train ...` for the same run."""
    words = ["starfire", "train"]
    for field, said in declared(TrainRequest):
        value = getattr(request, field.name)
        if field.name not in given or value is None:
            continue
        on, _, off = (said.flags or (said.flag(field.name),))[0].partition("/")
        if isinstance(value, bool):
            words += [on if value else off] if value or off else []
        elif isinstance(value, tuple) and said.parse is None:
            words += [word for one in value for word in (on, str(one))]
        else:
            words += [on, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return command_text(words)
