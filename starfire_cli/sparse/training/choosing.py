"""Autotuning of training: each pass of each layer is timed in all ways, and the fastest is kept."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

import torch

from starfire_cli.sparse.training.convolution import IN_TORCH, PASSES, LiveConvolution, Pass, Way
from starfire_cli.sparse.training.maps import new_map

REPEATS = 3
_SPARSE = 0.3  # of weights live: up to here torch is not tried
_HOPELESS = 3.0  # times as slow as the best so far: not looked at again


def choose_ways(layers: Iterable[LiveConvolution]) -> None:
    """Set the ways of layers by timing them; layers of one shape and about one density are timed once."""
    known: dict[object, dict[Pass, Way]] = {}
    for layer in layers:
        m = layer.module
        key = layer.shape, layer.images, m.in_channels, m.out_channels, m.groups, layer.whole, round(layer.density, 1)
        if key not in known:
            known[key] = _fastest(layer)
        layer.ways = dict(known[key])


@torch.no_grad()
def _fastest(layer: LiveConvolution) -> dict[Pass, Way]:
    m, held = layer.module, layer.images
    x = new_map(m.in_channels, *layer.shape.pixels, held).uniform_(-1, 1)
    dy = new_map(m.out_channels, *layer.shape.outputs, held).uniform_(-1, 1)
    chosen: dict[Pass, Way] = {}
    for name in PASSES:
        best = float("inf")
        in_torch = [IN_TORCH] if layer.density > _SPARSE else []
        for way in [*layer.candidates(name), *in_torch]:
            layer.ways[name] = way
            seconds = _seconds(layer, name, x, dy, best)
            if seconds < best:
                best, chosen[name] = seconds, way
        layer.ways[name] = chosen[name]
    layer.forget_others()
    return chosen


def _seconds(layer: LiveConvolution, name: Pass, x: torch.Tensor, dy: torch.Tensor, rival: float) -> float:
    def run() -> object:
        if name == "forward":
            return layer.forward(x, layer.images)
        return layer.input_gradient(dy, None) if name == "input" else layer.weight_gradient(x, dy)

    run()
    best = float("inf")
    for _ in range(REPEATS):
        started = perf_counter()
        run()
        best = min(best, perf_counter() - started)
        if best > _HOPELESS * rival:
            break
    return best
