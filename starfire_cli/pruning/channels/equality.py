"""Checks that two networks are the same function: compares their outputs in eval mode on random images, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

# Rounding in float64 stays far below; a constant lost or a border pixel far above.
ALLOWED = 1e-9


@torch.no_grad()
def outputs_on_noise(model: Callable[[Tensor], object], image: Tensor) -> list[list[Tensor]]:
    """The outputs of a network in eval mode, float64, on the CPU, for two small random batches of `image`'s shape."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, *image.shape[1:])
    pixels = torch.rand(shape, generator=generator, dtype=torch.float64)
    noise = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return [_floats(model(batch)) for batch in (pixels, noise)]


def largest_difference(before: list[list[Tensor]], after: list[list[Tensor]]) -> float:
    """The largest |difference| of any output, over the largest |output| of its batch; NaN where one is not a number.

    In float64 a different function (a border pixel, a lost constant) stands out from rounding, in float32 it may not.
    """
    ratios = [0.0]
    for old, new in zip(before, after, strict=True):
        scale = max(float(t.abs().max()) for t in old)
        ratios += [float((a - b).abs().max()) / max(scale, 1e-300) for a, b in zip(old, new, strict=True)]
    return float("nan") if any(math.isnan(r) for r in ratios) else max(ratios)


def _floats(output: object) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
