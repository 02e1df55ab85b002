"""The pruning plan of a run: what method and target come to in each layer, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starfire_cli.errors import BadOption, option
from starfire_cli.pruning import Budget, Cut, Goal, Layer, NetworkMethod, Pruner
from starfire_cli.records.train import PlanLayer
from starfire_cli.text import some
from starfire_cli.workflows.train.settings import Pruning


def plan_layers(pruner: Pruner, pruning: Pruning, macs: Mapping[str, int]) -> tuple[PlanLayer, ...]:
    """The rows of the plan. Raises BadOption, with what would work, where a layer would lose everything."""
    rows = []
    for layer, left, rule in pruner.plan():
        rows.append(
            PlanLayer(
                name=layer.name,
                kind="depthwise" if layer.depthwise else layer.kind,
                shape=layer.shape,
                rule=rule if isinstance(rule, str) else rule_in_words(layer, rule),
                weights=layer.weights,
                left=left,
                macs=macs.get(layer.name, 0),
            )
        )
    # What came in without a live weight has nothing to lose.
    masks = [pruner.masks[layer.key] for layer in pruner.layers]
    if emptied := [row.name for row, mask in zip(rows, masks, strict=True) if not row.left and mask.any()]:
        raise BadOption(_too_sparse(pruner.layers, pruning, emptied))
    return tuple(rows)


def rule_in_words(layer: Layer, budget: Budget | None) -> str:
    """A budget in words."""
    parts: list[str] = []
    for cut in budget or ():
        if cut.count:
            again = " in all" if parts and not cut.unit else ""
            parts.append(_cut_in_words(layer, cut) + again)
    return " + ".join(parts) or "nothing new"


def _cut_in_words(layer: Layer, cut: Cut) -> str:
    if not cut.unit and cut.reduce == "sum":
        return f"{cut.count} {cut.tile}x{cut.tile} tiles"
    share = f"{cut.count}/{cut.competitors(layer.shape, layer.groups)}"
    if (cut.unit, cut.within) == ("", "KC"):
        return f"{share} of a window"
    unit = "" if cut.unit == "RS" and layer.window == 1 else cut.unit
    of = {"": "", "C": " of an input", "K": " of an output"}.get(cut.within, f" in each {cut.within}")
    return f"{share} {_UNITS.get(unit, f'units of {unit}')}{of}"


_UNITS = {"": "weights", "RS": "kernels", "CRS": "filters", "KRS": "input channels", "S": "rows", "K": "columns"}


def _too_sparse(layers: Sequence[Layer], pruning: Pruning, emptied: list[str]) -> str:
    which = option("keep_dense", tuple(emptied)) if len(emptied) <= 3 else option("keep_dense")
    works = next(
        (t / 1000 for t in range(int(pruning.target * 1000), -1, -1) if not _empties(layers, pruning, t / 1000)), 0.0
    )
    less = f"; at most --target {works:g} leaves something everywhere, and" if works else ", nor does a lower one;"
    return (
        f"--target {pruning.target:g} with --method {pruning.method_spec} leaves nothing of {some(emptied)}{less} "
        f"{which} exempts {'it' if len(emptied) == 1 else 'them'}"
    )


def _empties(layers: Sequence[Layer], pruning: Pruning, target: float) -> bool:
    for layer in layers:
        method = pruning.linear if layer.kind == "linear" else pruning.conv
        if isinstance(method, NetworkMethod):
            continue  # it leaves every layer something
        cuts = method.budget(layer, Goal(target=target)) or ()
        if any(cut.count >= cut.competitors(layer.shape, layer.groups) and not cut.keep for cut in cuts):
            return True
    return False
