"""`plot`: what the command of that name does, from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    from starfire_cli.report.plot.drawn import Figures
    from starfire_cli.report.progress import progress
    from starfire_cli.workflows.plot.draw import Found, draw_sources
    from starfire_cli.workflows.plot.run import collect_sources

    def watch(opened: Iterator[Found], total: int) -> Iterator[Found]:
        with progress("checkpoints", shown if total > 1 else False) as update:
            for number, found in enumerate(opened, 1):
                update(number, total)
                yield found

    drawing = draw_sources(request, collect_sources(request.paths), kinds, watch)
    return Figures(drawing.figures, tuple(map(in_python, drawing.notes)))
