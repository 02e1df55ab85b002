"""LASSO over channels: chooses the input channels of a layer whose sparse sum gives its output (He et al. 2017, arXiv
1707.06168).

min over beta of 1/(2M) |y - b - Z beta|^2 + alpha |beta|_1, where column c of Z is what input channel c adds to the
outputs, and b a constant. He et al. raise alpha by doubling and bisection until the wanted number of betas is not 0.
Here the solution is followed exactly from the alpha where all are 0 down to the first where so many are not (the
homotopy of Osborne et al. 2000): the same channels, without a tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]

_DEPENDENT = 1e-10  # of a channel's variance: what the others do not say already


def moments(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Covariances of Z with itself, (C, C), and with y, (C,), float64, of rows that come in parts.

    Args:
        parts: of Z, (M, C), and y, (M,).
    """
    rows, zz, zy, z, y = 0, torch.zeros(()), torch.zeros(()), torch.zeros(()), torch.zeros(())
    for z_MC, y_M in parts:
        z_MC, y_M = z_MC.double(), y_M.double()
        rows += len(y_M)
        zz, zy, z, y = zz + z_MC.T @ z_MC, zy + z_MC.T @ y_M, z + z_MC.sum(0), y + y_M.sum()
    z, y = z / rows, y / rows
    return zz / rows - torch.outer(z, z), zy / rows - z * y


def choose_kept(cov_CC: Tensor, cov_C: Tensor, keep: int) -> tuple[list[int], float]:
    """The `keep` channels in ascending order, and an alpha at which just these are not 0 in the LASSO's solution.

    Channels that say nothing that others do not say (copies, dead ones) come last, by index; alpha is then 0.

    Args:
        cov_CC: of `moments`.
        cov_C: likewise.
        keep: 1 to C.
    """
    gram, moment = cov_CC.numpy(), cov_C.numpy()
    useful = np.diag(gram) > 1e-12 * max(float(np.diag(gram).max()), 1e-300)
    beta = np.zeros(len(moment))
    active: list[int] = []
    alpha = float(np.abs(moment[useful]).max()) if useful.any() else 0.0
    smallest = 1e-12 * alpha
    joining = int(np.where(useful, np.abs(moment), -1).argmax())
    while alpha > smallest:
        if joining >= 0:
            if not _independent(gram, active, joining):
                useful[joining] = False
            else:
                active = sorted([*active, joining])
        left = moment - gram @ beta
        sign = np.where(beta[active] != 0, np.sign(beta[active]), np.sign(left[active]))
        slope = np.linalg.solve(gram[np.ix_(active, active)], sign)
        step, joining, dropping = _next_event(gram[:, active] @ slope, left, beta, slope, active, useful, alpha)
        if len(active) == keep:
            return active, alpha - step / 2
        beta[active] += step * slope
        alpha -= step
        if dropping >= 0:
            beta[dropping] = 0.0
            active.remove(dropping)
    rest = sorted(set(range(len(moment))) - set(active), key=lambda c: (not useful[c], gram[c, c] <= 0, c))
    return sorted([*active, *rest[: keep - len(active)]]), 0.0


def _next_event(
    turn: Vector, left: Vector, beta: Vector, slope: Vector, active: list[int], useful: NDArray[np.bool_], alpha: float
) -> tuple[float, int, int]:
    """(how far alpha falls until something changes, the channel that joins or -1, the one that drops out or -1)."""
    outside = useful.copy()
    outside[active] = False
    steps = np.full(len(left), np.inf)
    for corr, rate in ((left, turn), (-left, -turn)):
        with np.errstate(divide="ignore", invalid="ignore"):
            at = (alpha - corr) / (1 - rate)
        # A hair below 0 is a channel that was due at the last event, too.
        at = np.where((at > -1e-9 * alpha) & (rate < 1 - 1e-12), np.maximum(at, 0.0), np.inf)
        steps = np.minimum(steps, np.where(outside, at, np.inf))
    joining = int(steps.argmin())
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = -beta[active] / slope
    crossings = np.where((crossings > 0) & (beta[active] != 0), crossings, np.inf)
    dropping = int(crossings.argmin())
    step = float(min(steps[joining], crossings[dropping], alpha))
    if step == crossings[dropping]:
        return step, -1, active[dropping]
    return step, joining if step == steps[joining] else -1, -1


def _independent(gram: Vector, active: list[int], joining: int) -> bool:
    if not active:
        return True
    column = gram[active, joining]
    rest = gram[joining, joining] - column @ np.linalg.solve(gram[np.ix_(active, active)], column)
    return bool(rest > _DEPENDENT * gram[joining, joining])
