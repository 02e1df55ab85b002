"""Collects the runs, checkpoints and result files behind the given paths as records to plot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starfire_cli.errors import StarfireError
from starfire_cli.formats.overwriting import files_of
from starfire_cli.formats.run import RUNS, Run, find_checkpoint, newest_run
from starfire_cli.records.plot import Material, NetworkPicture, RobustCurve, RunHistory
from starfire_cli.workflows.plot.run_files import (
    attacks_beside,
    is_run,
    read_curves,
    read_json,
    read_run,
    read_sizes,
)

_DEEP = 3  # levels of folders below a given one in which runs are looked for


@dataclass
class Sources:
    """The runs, checkpoints and results behind the given paths, with checkpoints not opened yet.

    Args:
        runs: read already.
        checkpoints: to look into: one a run, and those given as files.
        curves: of the results of attacks, given or lying beside what was given.
        packed: (file, bytes) by the checkpoint's real path, from results of `compress --json`.
        notes: what was left out and why.
        given: the files that were named.
    """

    runs: list[RunHistory] = field(default_factory=list)
    checkpoints: list[Path] = field(default_factory=list)
    curves: list[RobustCurve] = field(default_factory=list)
    packed: dict[str, tuple[Path, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    given: list[Path] = field(default_factory=list)

    def files(self) -> list[Path]:
        """All files that are read for these sources, which must not be overwritten."""
        of_runs = [file for run in self.runs for file in Run(run.path).files]
        of_checkpoints = [file for path in self.checkpoints for file in files_of(path)]
        packed = [path for path, _ in self.packed.values()]
        return [*self.given, *of_runs, *of_checkpoints, *(curve.file for curve in self.curves), *packed]


def collect_sources(paths: Sequence[Path], root: Path = RUNS) -> Sources:
    """Finds and reads run folders, folders of runs, checkpoints, and results of attack and compress.

    Args:
        paths: none means the newest run under `root`.
        root: the folder of runs.

    Raises:
        StarfireError: none of them can be used; where only some cannot, they become notes.
    """
    sources = Sources(given=[path for path in paths if path.is_file()])
    problems: list[StarfireError] = []
    for path in list(dict.fromkeys(paths)) or [newest_run(root).path]:
        try:
            _add(path, sources)
        except StarfireError as error:
            problems.append(error)
    if not (sources.runs or sources.checkpoints or sources.curves):
        raise problems[0]
    sources.notes += [f"left out: {problem}" for problem in problems]
    for run in sources.runs:
        sources.notes += [f"{run.path}: {note}" for note in run.notes]
    return sources


def build_material(sources: Sources, networks: Sequence[NetworkPicture]) -> Material:
    """All records together, ready to be drawn."""
    return Material(
        runs=tuple(sources.runs),
        networks=tuple(networks),
        curves=tuple(sources.curves),
        notes=tuple(dict.fromkeys(sources.notes)),
    )


def _add(path: Path, sources: Sources) -> None:
    if path.is_dir():
        if is_run(path):
            _add_run(path, sources)
        else:
            _add_folder(path, sources)
    elif not path.exists():
        raise StarfireError(f"there is no file or folder {path}")
    elif path.name in ("config.json", "metrics.jsonl") and is_run(path.parent):
        _add_run(path.parent, sources)
    elif path.suffix == ".json" and not path.name.endswith(".index.json"):
        _add_result(path, sources)
    else:
        _add_checkpoint(path, sources)
        _add_curve_files(attacks_beside(path.parent, path.stem if path.suffix == ".pt" else path.name), sources)


def _add_run(folder: Path, sources: Sources) -> None:
    if any(real_path(run.path) == real_path(folder) for run in sources.runs):
        return
    run = read_run(folder)
    sources.runs.append(run)
    if run.checkpoint is not None:
        _add_checkpoint(run.checkpoint, sources)
    _add_curve_files(attacks_beside(folder), sources)


def _add_folder(folder: Path, sources: Sources) -> None:
    found = list(_runs_below(folder, _DEEP))
    results = list(attacks_beside(folder))
    for run in found:
        try:
            _add_run(run, sources)
        except StarfireError as error:
            sources.notes.append(f"left out: {error}")
    if found or results:
        _add_curve_files(results, sources)
        return
    try:
        _add_checkpoint(find_checkpoint(folder), sources)
    except StarfireError:
        raise StarfireError(f"there is neither a run nor a checkpoint in {folder}") from None


def _runs_below(folder: Path, levels: int) -> Iterator[Path]:
    try:
        inside = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise StarfireError(f"{folder} cannot be read: {error.strerror or error}") from None
    for path in inside:
        if is_run(path):
            yield path
        elif levels > 1 and not path.name.startswith("."):
            yield from _runs_below(path, levels - 1)


def _add_result(path: Path, sources: Sources) -> None:
    sizes = read_sizes(read_json(path))
    if sizes is None:
        _add_curves(read_curves(path), sources)
        return
    checkpoint, packed, size = sizes
    sources.packed[real_path(checkpoint)] = (packed, size)
    if checkpoint.is_file():
        _add_checkpoint(checkpoint, sources)
    else:
        sources.notes.append(f"{path} is about {checkpoint}, which is not there (any more)")


def _add_checkpoint(path: Path, sources: Sources) -> None:
    if all(real_path(path) != real_path(other) for other in sources.checkpoints):
        sources.checkpoints.append(path)


def _add_curve_files(files: Iterable[Path], sources: Sources) -> None:
    for file in files:
        try:
            _add_curves(read_curves(file), sources)
        except StarfireError as error:
            sources.notes.append(f"left out: {error}")


def _add_curves(curves: Sequence[RobustCurve], sources: Sources) -> None:
    """Adds curves; of one network in two files, the curve with more points is kept."""
    for curve in curves:
        key = (real_path(Path(curve.checkpoint)), curve.attack, curve.norm, curve.images)
        for place, other in enumerate(sources.curves):
            if (real_path(Path(other.checkpoint)), other.attack, other.norm, other.images) == key:
                if len(curve.points) > len(other.points):
                    sources.curves[place] = curve
                break
        else:
            sources.curves.append(curve)


def real_path(path: Path) -> str:
    """The resolved path, equal for all names of one file or folder."""
    return os.path.realpath(path)
