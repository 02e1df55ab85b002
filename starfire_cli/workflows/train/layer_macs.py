"""Counts multiply-accumulates by live weights, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

from starfire_cli.pruning import Pruner


def live_macs_by_layer(macs: Mapping[str, int], pruner: Pruner) -> dict[str, int]:
    """Of one image, by layer. Waits for the device.

    Args:
        macs: all of them, by layer.
        pruner: whose masks.
    """
    left, zeros = dict(macs), pruner.zeros
    for layer in pruner.layers:
        if layer.name in left:
            left[layer.name] = left[layer.name] * (layer.weights - zeros[layer.key]) // layer.weights
    return left
