"""Takes the steps of many weights, piece by piece in all threads, with numpy or with numba's loops.

Each operation is rounded by itself and none is fused, so that both give the same bits, with however many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from starfire_cli.pruning._threads import in_threads
from starfire_cli.pruning.live_step.piece import Floats, LivePiece
from starfire_cli.pruning.live_step.rules import AdamRule, Rule, SGDRule


def take_steps(steps: Iterable[tuple[LivePiece, Rule]], *, compiled: bool) -> None:
    """Take one optimizer step of each of these weights, in place.

    Args:
        steps: a weight's live entries and the rule of its step.
        compiled: by numba, which has to be installed; else numpy.
    """
    if compiled:
        from starfire_cli.pruning.live_step import loops

        sgd, adam = loops.sgd_step, loops.adam_step
    else:
        sgd, adam = _sgd, _adam
    tasks: list[tuple[int, Callable[[], None]]] = []
    for whole, rule in steps:
        for piece in whole.split():
            one = partial(sgd, piece, rule) if isinstance(rule, SGDRule) else partial(adam, piece, rule)
            tasks.append((len(piece.places_L), one))
    in_threads(tasks)


def _sgd(piece: LivePiece, rule: SGDRule) -> None:
    at, weight, gradient = _taken(piece)
    gradient += weight * rule.decay
    if piece.state:
        (momentum,) = piece.state
        momentum *= rule.momentum
        momentum += gradient
        if rule.nesterov:
            gradient += momentum * rule.momentum
        else:
            gradient = momentum
    weight -= gradient * rule.rate
    piece.weight_N[at] = weight


def _adam(piece: LivePiece, rule: AdamRule) -> None:
    at, weight, gradient = _taken(piece)
    first, second = piece.state
    weight *= rule.keep
    gradient += weight * rule.decay
    first *= rule.beta1
    first += gradient * rule.rest1
    second *= rule.beta2
    gradient *= gradient
    gradient *= rule.rest2
    second += gradient
    np.sqrt(second, out=gradient)  # torch's own is not rounded correctly where it comes from MKL
    gradient *= rule.root
    gradient += rule.eps
    weight -= (first * rule.size) / gradient
    piece.weight_N[at] = weight


def _taken(piece: LivePiece) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], Floats, Floats]:
    """(places, weights, gradients) of the live entries, copies."""
    at = piece.places_L.astype(np.intp)
    return at, piece.weight_N.take(at), piece.gradient.copy() if piece.packed else piece.gradient.take(at)
