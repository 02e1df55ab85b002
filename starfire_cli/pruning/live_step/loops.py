"""The compiled loops of live steps: each entry is read, computed and written in one pass.

No operation is fused or reordered, so that the bits are those of numpy (`steps.py`).
"""

from __future__ import annotations

import numpy as np

from starfire_cli.pruning.kernels.cpu.loops import _compiled, is_compiled
from starfire_cli.pruning.live_step.piece import LivePiece
from starfire_cli.pruning.live_step.rules import AdamRule, SGDRule


def sgd_step(piece: LivePiece, rule: SGDRule) -> None:
    """One step of SGD over the live entries, in place."""
    kind = (2 if rule.nesterov else 1) if piece.state else 0
    arrays = piece.arrays() if piece.state else (*piece.arrays(), piece.gradient)
    _sgd(*arrays, piece.packed, kind, rule.rate, rule.momentum, rule.decay)


def adam_step(piece: LivePiece, rule: AdamRule) -> None:
    """One step of Adam or AdamW over the live entries, in place."""
    numbers = (rule.keep, rule.decay, rule.beta1, rule.rest1, rule.beta2, rule.rest2, rule.size, rule.root, rule.eps)
    _adam(*piece.arrays(), piece.packed, *numbers)


def warmup_notice(optimizer: str) -> str | None:
    """A line for the user about the first step over live entries; None if the optimizer's loop was compiled before."""
    if is_compiled(_sgd if optimizer == "sgd" else _adam):
        return None
    return "numba compiles the step of live weights when the mask is fixed: some seconds, once"


@_compiled
def _sgd(places, weight, gradient, momentum, packed, kind, rate, kept, decay):  # type: ignore[no-untyped-def]
    for j in range(len(places)):
        i = places[j]
        w = weight[i]
        d = gradient[j if packed else i] + w * decay
        if kind:
            m = momentum[j] * kept + d
            momentum[j] = m
            d = d + m * kept if kind == 2 else m
        weight[i] = w - d * rate


@_compiled
def _adam(  # type: ignore[no-untyped-def]
    places, weight, gradient, first, second, packed, keep, decay, beta1, rest1, beta2, rest2, size, root, eps
):
    for j in range(len(places)):
        i = places[j]
        w = weight[i] * keep
        d = gradient[j if packed else i] + w * decay
        m = first[j] * beta1 + d * rest1
        v = second[j] * beta2 + d * d * rest2
        first[j], second[j] = m, v
        weight[i] = w - m * size / (np.sqrt(v) * root + eps)
