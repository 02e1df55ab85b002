"""Draws figures of runs and checkpoints, a kind each (docs/plot.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starfire_cli.errors import StarfireError
from starfire_cli.records.plot import Material, NetworkPicture
from starfire_cli.report.plot.groups import Group, group_runs, with_experiment_titles
from starfire_cli.report.plot.kinds import checkpoints_to_open, default_kinds, draw, nothing_drawn, omission_notes
from starfire_cli.workflows.plot.request import PlotRequest
from starfire_cli.workflows.plot.run import Sources, build_material

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = NetworkPicture | str
"""A checkpoint that was opened, or a note in place of one that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Figures with the records they show.

    Args:
        figures: by kind.
        material: what they show.
        groups: its runs, those together that differ only in their seed.
        axis: time in "epoch" or "step".
        notes: what was left out and why, a sentence each.
    """

    figures: dict[str, Figure]
    material: Material
    groups: list[Group]
    axis: str
    notes: tuple[str, ...]

    def again(self, kind: str, width: float) -> Figure:
        """The figure of a kind, drawn anew `width` inches wide."""
        return draw(kind, self.material, axis=self.axis, width=width, groups=self.groups)


def draw_sources(
    request: PlotRequest,
    sources: Sources,
    kinds: Sequence[str],
    watch: Callable[[Iterator[Found], int], Iterable[Found]],
) -> Drawing:
    """Draw all kinds that the sources allow.

    Args:
        request: what was asked for.
        sources: of `collect_sources`.
        kinds: of figures, as `parse_kinds` gives them; empty for what the sources allow.
        watch: passes on the checkpoints as they are opened, and their number, to show progress.

    Raises StarfireError where nothing can be drawn.
    """
    groups = group_runs(sources.runs)
    wanted = list(kinds) or default_kinds(sources.runs, sources.checkpoints, sources.curves)
    paths = checkpoints_to_open(wanted, groups, sources.checkpoints)
    networks = []
    if paths:
        from starfire_cli.workflows.plot.networks import open_networks  # brings torch, which curves do without

        masks = "kernels" in wanted
        opened = open_networks(sources, paths, masks=masks, layers=request.layer, weights=request.weights)
        for found in watch(opened, len(paths)):
            if isinstance(found, NetworkPicture):
                networks.append(found)
            else:
                sources.notes.append(found)
    material = with_experiment_titles(build_material(sources, networks), groups)
    figures, problems = {}, []
    for kind in wanted:
        try:
            figures[kind] = draw(kind, material, axis=request.x, width=request.width, groups=groups)
        except StarfireError as error:
            problems.append(error)
    if not figures:
        raise nothing_drawn(problems, material)
    left_out = [f"left out: {problem}" for problem in problems] if kinds else []
    notes = (*left_out, *material.notes, *omission_notes(list(figures), material, groups, sources.checkpoints))
    return Drawing(figures=figures, material=material, groups=groups, axis=request.x, notes=notes)
