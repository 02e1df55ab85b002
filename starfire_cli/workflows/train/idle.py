"""Tells of runs whose pruning comes to nothing: no layer to prune, a penalty that never acts, a single evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from starfire_cli.errors import BadOption
from starfire_cli.pruning import Layer, NetworkMethod, Pruner
from starfire_cli.text import counted
from starfire_cli.workflows.train.settings import Pruning


def refuse_exempt(layers: Sequence[Layer], left_out: Sequence[tuple[str, str]], pruning: Pruning) -> None:
    """Raises BadOption where a method is to prune, and `--keep-dense` or `--only` leaves it no layer.

    Args:
        layers: that may be pruned.
        left_out: (layer, why it may not).
        pruning: the methods and the target.
    """
    exempt = [why for _, why in left_out if why.startswith(("--keep-dense", "not in --only"))]
    if layers or not exempt or not pruning.target:
        return
    options = ", ".join(dict.fromkeys(exempt))
    raise BadOption(
        f"nothing is left to prune with --method {pruning.method_spec}: {counted(len(exempt), 'layer')} exempt "
        f"({options}); fewer patterns leave some, and --method dense prunes none"
    )


def idle_notes(pruner: Pruner, pruning: Pruning) -> Iterator[str]:
    """Lines for the user on what of the method does not come to act, before a run begins."""
    if not isinstance(pruning.conv, NetworkMethod):
        return
    axes, method = pruning.conv.axes(), pruning.method_spec
    if not pruning.target and axes.penalty is not None:
        yield f"--target 0: --method {method} prunes nothing and adds no penalty; this trains without either"
    if axes.every is None or axes.monotone or axes.rounds is not None or not pruning.target:
        return
    era = pruner.era
    at = [step for step in range(era.first_step + 1, era.last_step + 1) if pruner.evaluates_at(step)]
    if len(at) == 1:
        yield (
            f"--method {method}: the era of {era.last_step - era.first_step} steps has room for one evaluation of the "
            f"masks, after step {at[0]}; a smaller every=N or a longer --era gives more"
        )
