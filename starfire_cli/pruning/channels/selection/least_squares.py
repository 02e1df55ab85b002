"""Least squares refit of a layer's weights to the outputs that it should give."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1 << 14  # at a time, in float64


def fit(x_MU: Tensor, y_MK: Tensor, *, constant: bool, alive_KU: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights (U, K) and constants (K,), float64, with the least sum of squares of y - constants - x weights.

    Where several do equally well, the weights of the least norm.

    Args:
        x_MU: inputs, (M, U).
        y_MK: outputs, (M, K).
        constant: whether a constant may be added; else it is 0.
        alive_KU: the weights that may be other than 0, bool; None: all.
    """
    mean_U, mean_K = x_MU.double().mean(0), y_MK.double().mean(0)
    if not constant:
        mean_U, mean_K = torch.zeros_like(mean_U), torch.zeros_like(mean_K)
    gram_UU, moment_UK = mean_U.new_zeros(len(mean_U), len(mean_U)), mean_U.new_zeros(len(mean_U), len(mean_K))
    for start in range(0, len(x_MU), _ROWS):
        x = x_MU[start : start + _ROWS].double() - mean_U
        gram_UU += x.T @ x
        moment_UK += x.T @ (y_MK[start : start + _ROWS].double() - mean_K)
    if alive_KU is None or bool(alive_KU.all()):
        weights_UK = _solve(gram_UU, moment_UK)
    else:
        weights_UK = _solve_live(gram_UU, moment_UK, alive_KU)
    return weights_UK, mean_K - mean_U @ weights_UK


def _solve_live(gram_UU: Tensor, moment_UK: Tensor, alive_KU: Tensor) -> Tensor:
    """The solution of each output among its own live weights; outputs with the same ones are solved together."""
    weights_UK = torch.zeros_like(moment_UK)
    patterns, pattern_K = torch.unique(alive_KU, dim=0, return_inverse=True)
    for number, alive_U in enumerate(patterns):
        live, outputs = alive_U.nonzero().squeeze(1), (pattern_K == number).nonzero().squeeze(1)
        if len(live):
            weights_UK[live[:, None], outputs] = _solve(gram_UU[live[:, None], live], moment_UK[live[:, None], outputs])
    return weights_UK


def _solve(gram: Tensor, moment: Tensor) -> Tensor:
    scale = gram.diagonal().clamp_min(1e-300).rsqrt()
    scaled = gram * torch.outer(scale, scale)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if not int(failed) and float(factor.diagonal().min()) > 1e-6:
        return scale[:, None] * torch.cholesky_solve(scale[:, None] * moment, factor)
    inverse: Tensor = torch.linalg.pinv(gram, hermitian=True, rtol=1e-12)
    return inverse @ moment
