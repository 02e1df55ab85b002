"""`plot`: what the command of that name does, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starfire_cli.api._arguments import SAVED, AnyPath, path_argument
from starfire_cli.api._errors import in_python, python_errors
from starfire_cli.api._types import check_arguments

if TYPE_CHECKING:
    from starfire_cli.report.plot.drawn import Figures
    from starfire_cli.workflows.plot.request import PlotRequest


def plot(
    *paths: AnyPath,
    kind: str | Sequence[str] = (),
    x: str = "epoch",
    layer: str | None = None,
    weights: str | None = None,
    width: float = 7.2,
    progress: bool | None = None,
) -> Figures:
    """Draw runs and checkpoints: accuracy, sparsity, layers, masks, robustness, trade-offs.

    Args:
        paths: run folders, folders of them, checkpoints, results of attack or compress. Default: the newest run.
        kind: "convergence", "sparsity", "tradeoff", "layers", "window", "kernels" or "robustness", or several.
            Default: what the paths allow.
        x: time in "epoch" or "step".
        layer: glob of the layers whose masks "kernels" shows.
        weights: of a file with several networks which; as for `load`.
        width: inches, 3 to 20.
        progress: whether a bar is shown; None: on a terminal or in a notebook.

    Returns:
        `Figures`: a dict of matplotlib figures by kind, with `notes` and `save(path)`; a notebook shows them.

    Raises:
        StarfireError: nothing can be drawn, in one line.
    """
    check_arguments(plot, locals())
    from starfire_cli.workflows.plot.request import PlotRequest

    with python_errors():
        from starfire_cli import options
        from starfire_cli.report.plot.kinds import parse_kinds

        kinds = (kind,) if isinstance(kind, str) else tuple(kind)
        files = tuple(path_argument("path", path, hint=SAVED) for path in paths)
        request = PlotRequest(paths=files, kind=kinds, x=x, layer=layer, weights=weights, width=width)
        options.check(request)
        return _drawn(request, parse_kinds(kinds), progress)


def _drawn(request: PlotRequest, kinds: list[str], shown: bool | None) -> Figures:
    from starfire_cli.errors import StarfireError
    from starfire_cli.records.plot import NetworkPicture
    from starfire_cli.report.plot.drawn import Figures
    from starfire_cli.report.plot.groups import group_runs, with_experiment_titles
    from starfire_cli.report.plot.kinds import checkpoints_to_open, default_kinds, draw, nothing_drawn, omission_notes
    from starfire_cli.report.progress import progress
    from starfire_cli.workflows.plot.networks import open_networks
    from starfire_cli.workflows.plot.run import build_material, collect_sources

    sources = collect_sources(request.paths)
    groups = group_runs(sources.runs)
    wanted = kinds or default_kinds(sources.runs, sources.checkpoints, sources.curves)
    paths = checkpoints_to_open(wanted, groups, sources.checkpoints)
    networks = []
    looking = open_networks(sources, paths, masks="kernels" in wanted, layers=request.layer, weights=request.weights)
    with progress("checkpoints", shown if len(paths) > 1 else False) as update:
        for number, found in enumerate(looking, 1):
            update(number, len(paths))
            if isinstance(found, NetworkPicture):
                networks.append(found)
            else:
                sources.notes.append(found)
    material = with_experiment_titles(build_material(sources, networks), groups)
    figures, problems = {}, []
    for name in wanted:
        try:
            figures[name] = draw(name, material, axis=request.x, width=request.width, groups=groups)
        except StarfireError as error:
            problems.append(error)
    if not figures:
        raise nothing_drawn(problems, material)
    said = [f"left out: {problem}" for problem in problems] if kinds else []
    left_out = omission_notes(list(figures), material, groups, sources.checkpoints)
    return Figures(figures, tuple(map(in_python, (*said, *material.notes, *left_out))))
