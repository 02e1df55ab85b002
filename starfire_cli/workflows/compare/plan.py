"""Plans the cells of a comparison: tries every method, and finds the epochs by which all cost the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.labels import DENSE
from starfire_cli.records.compare import CompareCell
from starfire_cli.workflows.compare.cells import BaseRequest, CellGroup, group_cells
from starfire_cli.workflows.compare.flops import equal_epochs
from starfire_cli.workflows.compare.folder import CompareFolder
from starfire_cli.workflows.compare.request import CompareRequest
from starfire_cli.workflows.compare.settings import untargeted
from starfire_cli.workflows.compare.trial import MethodTrial, training_cost, try_request


@dataclass(frozen=True, kw_only=True)
class ComparePlan:
    """The cells of a comparison.

    Args:
        groups: one a row.
        pilots: with `--equal flops`, the epochs asked for and every method's cost, as compare.json has them.
        notes: lines for the user.
    """

    groups: tuple[CellGroup, ...] = ()
    pilots: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def plan_cells(
    request: CompareRequest,
    base: BaseRequest,
    methods: Sequence[str],
    folder: CompareFolder,
    earlier: dict[str, Any] | None,
) -> ComparePlan:
    """Decide on the cells; a method that has no run yet is tried first.

    Args:
        request: what was asked for.
        base: what all cells have in common.
        methods: specs, dense first.
        folder: of the comparison.
        earlier: what its compare.json says.

    Raises BadOption, StarfireError for what cannot be trained.
    """
    free = untargeted(methods, base)
    groups = group_cells(methods, request.target, request.seeds, untargeted=free)
    if request.equal == "epochs":
        for group in groups:
            if not any(folder.run_of(cell).config_path.exists() for cell in group.cells):
                _try(group.first, base, folder)
        return ComparePlan(groups=groups)
    cells = [group.first for group in groups if group.first.method != DENSE]
    pilots = _known_pilots(earlier, cells) or _pilots(cells, base, folder)
    notes = []
    epochs: dict[tuple[str, float | None], int] = {}
    for target in request.target:
        own = {cell.method: pilots["costs"][cell.title] for cell in cells if cell.target in (target, None)}
        each = equal_epochs({DENSE: 1.0, **own}, pilots["epochs"])
        epochs |= {(method, target): count for method, count in each.items()}
        listed = ", ".join(f"{method} {count}" for method, count in each.items())
        notes.append(f"equal training FLOPs at target {target:g}, in epochs: {listed}")
    with_dense = methods if DENSE in methods else (DENSE, *methods)
    groups = group_cells(with_dense, request.target, request.seeds, epochs, free)
    return ComparePlan(groups=groups, pilots=pilots, notes=tuple(notes))


def _pilots(cells: Sequence[CompareCell], base: BaseRequest, folder: CompareFolder) -> dict[str, Any]:
    """The training cost of every method over dense, from pilot runs, and the epochs asked for."""
    if not cells:
        raise BadOption("--equal flops needs a method that prunes; dense alone has nothing to be equal to")
    costs, epochs = {}, 0
    for cell in cells:
        trial = _try(cell, base, folder)
        costs[cell.title], epochs = training_cost(*base.of_cell(cell, folder.path), trial), trial.epochs
    return {"epochs": epochs, "costs": costs}


def _try(cell: CompareCell, base: BaseRequest, folder: CompareFolder) -> MethodTrial:
    try:
        return try_request(*base.of_cell(cell, folder.path))
    except StarfireError as error:
        raise type(error)(f"{cell.title}: {error}") from error


def _known_pilots(earlier: dict[str, Any] | None, cells: Sequence[CompareCell]) -> dict[str, Any] | None:
    """The pilots of an earlier call, if these cells all had one."""
    found = (earlier or {}).get("pilots")
    if not isinstance(found, dict) or not isinstance(found.get("costs"), dict) or not cells:
        return None
    costs = [found["costs"].get(cell.title) for cell in cells]
    sound = all(isinstance(cost, float) and 0 < cost < 100 for cost in costs)
    return found if sound and isinstance(found.get("epochs"), int) and found["epochs"] > 0 else None
