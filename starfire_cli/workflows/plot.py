"""What is there to draw? Runs, checkpoints and results behind a few paths, as plain records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.findings import LayerFinding
from starfire_cli.formats.run import RUNS, Run, find_checkpoint, newest_run
from starfire_cli.histories import MaskPicture, Material, NetworkPicture, RobustCurve, RunHistory
from starfire_cli.workflows.plot_files import attacks_beside, is_run, read_curves, read_json, read_run, read_sizes

_DEEP = 3  # levels of folders below a given one in which runs are looked for
_CORNER = 24  # kernels a side of the part of a mask that is shown weight by weight
_BROAD = 8
_PICTURES = 3  # layers whose masks are shown where none are named


@dataclass
class Sources:
    """What lies behind the paths; nothing heavy has been opened yet.

    Args:
        runs: read already.
        checkpoints: to look into: one a run, and those given as files.
        curves: of the results of attacks, given or lying beside what was given.
        packed: (file, bytes) by the checkpoint's real path, from results of `compress --json`.
        notes: what was left out and why.
    """

    runs: list[RunHistory] = field(default_factory=list)
    checkpoints: list[Path] = field(default_factory=list)
    curves: list[RobustCurve] = field(default_factory=list)
    packed: dict[str, tuple[Path, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def gather(paths: Sequence[Path], root: Path = RUNS) -> Sources:
    """Find and read what the paths name: run folders, folders of runs, checkpoints, results of attack and compress.

    Args:
        paths: none means the newest run under `root`.
        root: the folder of runs.

    Raises:
        StarfireError: none of them can be used; where only some cannot, they become notes.
    """
    sources = Sources()
    problems: list[StarfireError] = []
    for path in list(dict.fromkeys(paths)) or [newest_run(root).path]:
        try:
            _take(path, sources)
        except StarfireError as error:
            problems.append(error)
    if not (sources.runs or sources.checkpoints or sources.curves):
        raise problems[0]
    sources.notes += [f"left out: {problem}" for problem in problems]
    for run in sources.runs:
        sources.notes += [f"{run.path}: {note}" for note in run.notes]
    return sources


def look_into(
    sources: Sources,
    *,
    only: Callable[[Path], bool] = lambda _: True,
    masks: bool = False,
    layers: str | None = None,
) -> Iterator[NetworkPicture | str]:
    """Open the checkpoints, one after the other; what cannot be read is told as a sentence in its place.

    Args:
        sources: of `gather`.
        only: which of them.
        masks: whether to bring the masks of layers along.
        layers: glob for these; None for an early, a middle and a late one.

    Raises:
        BadOption: `layers` matches nothing in any of them.
    """
    from starfire_cli.workflows.network import title_of

    missed = 0
    chosen = [path for path in sources.checkpoints if only(path)]
    for path in chosen:
        try:
            picture = _look(path, masks, layers, title_of)
        except BadOption as error:
            missed += 1
            if missed == len(chosen):
                raise
            yield f"left out: {error}"
        except StarfireError as error:
            yield f"left out: {error}"
        else:
            packed = sources.packed.get(_real(path)) or _packed_beside(path)
            yield replace(picture, packed=packed)


def material(sources: Sources, networks: Sequence[NetworkPicture]) -> Material:
    """Everything together, ready to be drawn."""
    return Material(
        runs=tuple(sources.runs),
        networks=tuple(networks),
        curves=tuple(sources.curves),
        notes=tuple(dict.fromkeys(sources.notes)),
    )


def _take(path: Path, sources: Sources) -> None:
    if path.is_dir():
        if is_run(path):
            _take_run(path, sources)
        else:
            _take_folder(path, sources)
    elif not path.exists():
        raise StarfireError(f"there is no file or folder {path}")
    elif path.name in ("config.json", "metrics.jsonl") and is_run(path.parent):
        _take_run(path.parent, sources)
    elif path.suffix == ".json" and not path.name.endswith(".index.json"):
        _take_result(path, sources)
    else:
        _take_checkpoint(path, sources)
        _take_curves(attacks_beside(path.parent, path.stem), sources)


def _take_run(folder: Path, sources: Sources) -> None:
    if any(_real(run.path) == _real(folder) for run in sources.runs):
        return
    run = read_run(folder)
    sources.runs.append(run)
    if run.checkpoint is not None:
        _take_checkpoint(run.checkpoint, sources)
    _take_curves(attacks_beside(folder), sources)


def _take_folder(folder: Path, sources: Sources) -> None:
    found = [
        run
        for depth in range(1, _DEEP + 1)
        for run in sorted({p.parent for p in folder.glob("*/" * depth + "*") if p.name in _RUN_FILES})
    ]
    results = list(attacks_beside(folder))
    for run in found:
        try:
            _take_run(run, sources)
        except StarfireError as error:
            sources.notes.append(f"left out: {error}")
    if found or results:
        _take_curves(results, sources)
        return
    try:
        _take_checkpoint(find_checkpoint(folder), sources)
    except StarfireError:
        raise StarfireError(f"there is neither a run nor a checkpoint in {folder}") from None


_RUN_FILES = (Run(Path()).config_path.name, Run(Path()).metrics_path.name)


def _take_result(path: Path, sources: Sources) -> None:
    sizes = read_sizes(read_json(path))
    if sizes is None:
        _add_curves(read_curves(path), sources)
        return
    checkpoint, packed, size = sizes
    sources.packed[_real(checkpoint)] = (packed, size)
    if checkpoint.is_file():
        _take_checkpoint(checkpoint, sources)
    else:
        sources.notes.append(f"{path} is about {checkpoint}, which is not there (any more)")


def _take_checkpoint(path: Path, sources: Sources) -> None:
    if all(_real(path) != _real(other) for other in sources.checkpoints):
        sources.checkpoints.append(path)


def _take_curves(files: Sequence[Path] | Iterator[Path], sources: Sources) -> None:
    for file in files:
        try:
            _add_curves(read_curves(file), sources)
        except StarfireError as error:
            sources.notes.append(f"left out: {error}")


def _add_curves(curves: Sequence[RobustCurve], sources: Sources) -> None:
    """A network that two files tell of is taken once, with the larger number of points."""
    for curve in curves:
        key = (_real(Path(curve.checkpoint)), curve.attack, curve.norm, curve.images)
        for place, other in enumerate(sources.curves):
            if (_real(Path(other.checkpoint)), other.attack, other.norm, other.images) == key:
                if len(curve.points) > len(other.points):
                    sources.curves[place] = curve
                break
        else:
            sources.curves.append(curve)


def _look(path: Path, masks: bool, layers: str | None, title_of: Callable[..., str]) -> NetworkPicture:
    from starfire_cli.workflows.inspect import inspect, open_checkpoint

    checkpoint = open_checkpoint(path)
    inspection = inspect(checkpoint)
    pruning = checkpoint.meta.get("pruning")
    method = pruning.get("method") if isinstance(pruning, dict) else None
    pictures: list[MaskPicture] = []
    if masks:
        from starfire_cli.pruning.layers import Layer
        from starfire_cli.pruning.stats import kept_in_kernels

        for finding in _chosen(inspection.layers, layers, path):
            layer = Layer(
                name=finding.name,
                key=finding.key,
                kind=finding.kind,  # type: ignore[arg-type]
                shape=finding.shape,
                groups=finding.groups,
            )
            stored = (checkpoint.masks or {}).get(finding.key)
            alive = checkpoint.state[finding.key] != 0 if stored is None else stored
            corner = alive[:_CORNER, :_CORNER].numpy()
            window = (finding.shape[2], finding.shape[3]) if len(finding.shape) == 4 else (1, 1)
            pictures.append(
                MaskPicture(
                    name=finding.name,
                    window=window,
                    kept_KC=kept_in_kernels(layer, alive),
                    corner_KCRS=corner.reshape(*corner.shape[:2], *window).copy(),
                )
            )
    return NetworkPicture(
        title=title_of(path, dict(checkpoint.meta)),
        method=method if isinstance(method, str) else "?",
        inspection=inspection,
        run=path.parent if is_run(path.parent) else None,
        masks=tuple(pictures),
    )


def _chosen(layers: Sequence[LayerFinding], glob: str | None, path: Path) -> Sequence[LayerFinding]:
    """The layers whose masks are shown: those that match, or an early, a middle and a late one with windows."""
    if glob is not None:
        found = [x for x in layers if fnmatchcase(x.name, glob)]
        if not found:
            names = ", ".join(x.name for x in layers[:6]) + (", ..." if len(layers) > 6 else "")
            raise BadOption(f"--layer {glob!r} matches no layer of {path}; there are {len(layers)}: {names}")
        return found
    pruned = [x for x in layers if x.zeros] or list(layers)
    windows = [x for x in pruned if x.kind == "window"] or pruned
    windows = [x for x in windows if min(x.shape[:2]) >= _BROAD] or windows  # not the stem's few channels
    if len(windows) <= _PICTURES:
        return windows
    last = len(windows) - 1
    return [windows[round(i * last / (_PICTURES - 1))] for i in range(_PICTURES)]


def _packed_beside(path: Path) -> tuple[Path, int] | None:
    from starfire_cli.formats.packed import is_packed

    for file in (path, path.with_suffix(".safetensors"), path.with_name(f"{path.stem}.packed.safetensors")):
        if file.is_file() and is_packed(file):
            return file, file.stat().st_size
    return None


def _real(path: Path) -> str:
    return os.path.realpath(path)
