"""Plans of methods that see the whole network: the weights that each layer will have left, as far as can be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from starfire_cli.pruning.axes import Axes, Rewire, SparseStart, Stage
from starfire_cli.pruning.layer_units import LayerUnits
from starfire_cli.pruning.masks import Masks
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.removal import Rise


def planned_masks(
    axes: Axes, moment: Moment, layers_with: Callable[[Mapping[str, Tensor] | None], dict[str, LayerUnits]]
) -> tuple[Masks, dict[str, LayerUnits]]:
    """The masks at the era's end, and the layers with them.

    Only their counts are to be believed: which weights go is told by gradients and magnitudes that are not known yet.

    Args:
        axes: the method's.
        moment: the era's end.
        layers_with: the method's layers with other masks; with None, as they are.
    """
    layers = layers_with(None)
    left = {key: units.alive for key, units in layers.items()}
    start, rise = axes.start, axes.rise
    if isinstance(start, SparseStart) and "gradient" in start.reads:
        share = "uniform" if start.allocation == "global" else start.allocation
        start = replace(start, score="random", allocation=share)
    if axes.aimed:
        rise = Rise()  # as many as lie under the thresholds now
    if rise is not None and rise.reads:  # how many are known all the same, if not by a global rule
        rise = replace(rise, score="magnitude")
    # Any other start is a seed, which grows before the sparsity rises.
    stages: list[Stage] = [start] if isinstance(start, SparseStart) else []
    if rise is not None:
        stages.append(Rewire(removal=rise))
    for stage in stages:
        for key, change in stage.apply(layers, moment).items():
            left[key] = layers[key].spread(change.alive_U) & left[key]
        layers = layers_with(left)
    return left, layers
