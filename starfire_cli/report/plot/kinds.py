"""The kinds of figures, the records each needs, and the function that draws one by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from starfire_cli.errors import StarfireError, unknown
from starfire_cli.records.plot import Material, NetworkPicture, RobustCurve, RunHistory
from starfire_cli.report.plot import style
from starfire_cli.report.plot.groups import Group, group_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {
    "overview": "Accuracy by epoch, and the sparsity of each layer",
    "convergence": "Validation accuracy by epoch",
    "sparsity": "Threshold and true sparsity by epoch",
    "tradeoff": "Accuracy against sparsity, multiply-accumulates and file size",
    "cost": "Accuracy against the cost of training",
    "layers": "Sparsity of each layer",
    "window": "How many of nine weights survive in 3x3 windows",
    "kernels": "The masks themselves",
    "robustness": "Accuracy under attack",
}
"""In the order of the pages, with what each shows."""

INSIDE = frozenset(("overview", "tradeoff", "layers", "window", "kernels"))
"""The kinds for which checkpoints are opened."""

PANELS = 6
"""Networks that layers and windows are shown of on one page."""
LEFT_OUT = "left out: "
"""The beginning of a note on what cannot be read."""
_MANY_FILES = 40  # checkpoints that are opened without being asked for


def parse_kinds(texts: Sequence[str]) -> list[str]:
    """Parses `["layers,window", "sparsity"]` into three kinds in the order of the pages. Raises BadOption."""
    wanted = {part.strip() for text in texts for part in text.split(",") if part.strip()}
    for kind in sorted(wanted - KINDS.keys()):
        raise unknown("--kind", kind, KINDS)
    return [kind for kind in KINDS if kind in wanted]


def default_kinds(runs: Sequence[RunHistory], checkpoints: Sequence[Path], curves: Sequence[RobustCurve]) -> list[str]:
    """The default kinds: all that the material allows and that are informative."""
    begun = [run for run in runs if run.has("val_top1")]
    sparsities = {round(best.get("sparsity_prunable", 0.0), 3) for run in begun if (best := run.best())}
    possible = {
        "overview": False,  # the same as convergence and layers, smaller
        "convergence": bool(begun),
        "sparsity": any(run.has("sparsity_prunable") for run in runs if not run.dense),
        "tradeoff": len(begun) > 2 and len(sparsities) > 1 and len(checkpoints) <= _MANY_FILES,
        "cost": len(begun) > 1 and all(run.spent("flops") for run in begun),
        "layers": bool(checkpoints),
        "window": bool(checkpoints),
        "kernels": len(checkpoints) == 1,
        "robustness": bool(curves),
    }
    return [kind for kind in KINDS if possible[kind]]


def checkpoints_to_open(kinds: Sequence[str], groups: Sequence[Group], checkpoints: Sequence[Path]) -> list[Path]:
    """The checkpoints that the kinds need: all for the trade-off, else one an experiment and no more than fit."""
    if "tradeoff" in kinds:
        return list(checkpoints)
    if not INSIDE & set(kinds):
        return []
    return _one_each(groups, checkpoints)


def draw(
    kind: str, material: Material, *, axis: str = "epoch", width: float = style.WIDE, groups: Sequence[Group] = ()
) -> Figure:
    """Draws the figure of a kind.

    Args:
        kind: one of KINDS.
        material: what there is.
        axis: "epoch" or "step", for pictures that have time.
        width: inches.
        groups: the runs' groups, if they are known already.

    Raises:
        StarfireError: the material has nothing for it.
    """
    from starfire_cli.report.plot import figures

    groups = groups or group_runs(material.runs)
    begun = [group for group in groups if any(run.rows for run in group.runs)]
    networks = _shown(groups, material.networks)
    if kind in ("overview", "convergence", "sparsity"):
        key = "sparsity_prunable" if kind == "sparsity" else "val_top1"
        if axis == "step":
            begun = [replace(group, runs=tuple(filter(figures.counts_steps, group.runs))) for group in begun]
            begun = [group for group in begun if group.runs]
            _need(bool(begun), kind, "a run that counts its steps (--x epoch does without)")
        _need(any(run.has(key) for group in begun for run in group.runs), kind, f"a run with an epoch that has {key}")
        if kind == "overview":
            networks = [network for network in networks if network.inspection.layers]
            _need(bool(networks), kind, "a checkpoint with prunable layers")
            return figures.overview_figure(begun, _first_sparse(networks), axis=axis, width=width)
        drawn = figures.convergence_figure if kind == "convergence" else figures.sparsity_figure
        return drawn(begun, axis=axis, width=width)
    if kind == "tradeoff":
        best = any(run.best() for group in begun for run in group.runs)
        _need(best, kind, "runs with an epoch that has val_top1")
        return figures.tradeoff_figure(begun, {n.run: n for n in material.networks if n.run}, width=width)
    if kind == "cost":
        begun = [group for group in begun if any(figures.counts_cost(group, m) for m in ("flops", "seconds"))]
        _need(bool(begun), kind, "a run whose epochs have val_top1 and train_macs or seconds")
        return figures.cost_figure(begun, width=width)
    if kind == "robustness":
        _need(bool(material.curves), kind, "results of starfire attack, or runs that have some")
        return figures.attacks_figure(material.curves, width=width)
    if kind == "layers":
        networks = [network for network in networks if network.inspection.layers]
        _need(bool(networks), kind, "a checkpoint with prunable layers")
        return figures.layers_figure(networks, width=width)
    if kind == "window":
        networks = [network for network in networks if figures.windows_of(network)]
        _need(bool(networks), kind, "a checkpoint with 3x3 convolutions")
        return figures.window_figure(networks, width=width)
    networks = [network for network in networks if network.masks]
    _need(bool(networks), kind, "a checkpoint with prunable layers")
    return figures.kernels_figure(_first_sparse(networks), width=width)


def nothing_drawn(problems: Sequence[StarfireError], material: Material) -> StarfireError:
    """The error where no figure came out.

    Args:
        problems: why those that were wanted cannot be drawn.
        material: of which nothing was drawn; where all of it is files that cannot be read, the notes say why.
    """
    noted = "; ".join(material.notes)
    unread = [note.removeprefix(LEFT_OUT) for note in material.notes if note.startswith(LEFT_OUT)]
    if unread and len(unread) == len(material.notes) and not (material.runs or material.networks or material.curves):
        return StarfireError("; ".join(unread))
    if not problems:
        return StarfireError(f"there is nothing to draw yet: {noted}")
    return StarfireError(f"{problems[0]} ({noted})") if noted else problems[0]


def omission_notes(
    kinds: Sequence[str], material: Material, groups: Sequence[Group], checkpoints: Sequence[Path]
) -> list[str]:
    """Notes on what the figures leave out."""
    said = []
    if "tradeoff" not in kinds and "layers" in kinds and len(checkpoints) > _MANY_FILES:
        said.append(f"tradeoff is not drawn unasked for {len(checkpoints)} checkpoints: --kind tradeoff opens them all")
    shown = _shown(groups, material.networks)
    by_layer = [kind for kind in ("layers", "window") if kind in kinds]
    unreadable = len(checkpoints_to_open(kinds, groups, checkpoints)) - len(material.networks)
    readable = len(checkpoints) - unreadable
    if by_layer and len(shown) < readable:
        said.append(
            f"{' and '.join(by_layer)} show{'' if len(by_layer) > 1 else 's'} {len(shown)} of {readable} checkpoints: "
            f"one an experiment, {PANELS} at most; name others to see them"
        )
    if "kernels" in kinds and len(shown) > 1:
        only = _first_sparse([network for network in shown if network.masks])
        said.append(f"kernels shows {only.inspection.path} alone; name another checkpoint to see it")
    return said


def _first_sparse(networks: Sequence[NetworkPicture]) -> NetworkPicture:
    """The first network with anything pruned: a dense network's mask shows nothing."""
    return next((network for network in networks if network.inspection.sparsity_prunable), networks[0])


def _need(there: bool, kind: str, what: str) -> None:
    if not there:
        raise StarfireError(f"{kind} cannot be drawn: it needs {what}, and none was found in what was given")


def _shown(groups: Sequence[Group], networks: Sequence[NetworkPicture]) -> list[NetworkPicture]:
    paths = [network.inspection.path for network in networks]
    by_path = dict(zip(paths, networks, strict=True))
    return [by_path[path] for path in _one_each(groups, paths)]


def _one_each(groups: Sequence[Group], checkpoints: Sequence[Path]) -> list[Path]:
    """One checkpoint of each experiment and every one that belongs to none; where that is too many, of each method."""
    experiment = {run.checkpoint: place for place, group in enumerate(groups) for run in group.runs if run.checkpoint}
    taken: dict[object, Path] = {}
    for path in checkpoints:
        taken.setdefault(experiment.get(path, path), path)
    turns: dict[str, int] = {}
    ranked: list[tuple[int, int, Path]] = []
    for path in sorted(taken.values(), key=lambda path: experiment.get(path, -1)):
        method = groups[experiment[path]].method if path in experiment else ""
        turns[method] = turns.get(method, -1) + 1
        ranked.append((turns[method] if method else -1, len(ranked), path))
    return [path for _, _, path in sorted(sorted(ranked)[:PANELS], key=lambda entry: entry[1])]
