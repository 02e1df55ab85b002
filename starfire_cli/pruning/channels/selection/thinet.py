"""ThiNet: chooses the input channels of a layer that rebuild its output best (Luo et al. 2017, arXiv 1707.06342).

A row of `x` is one output of the layer at one place of one image, split into what each input channel adds to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NOTHING = 1e-12  # of the squared length of a channel or of the output: rounding, no longer a part of its own


def grow_kept(x_MC: Tensor, keep: int) -> list[int]:
    """The `keep` channels that are chosen one after the other, in ascending order (the rule of TPAMI 2019).

    Each time the channel goes in whose own least squares fit takes most off the residual; then all that are in are
    fitted to the output anew, and what this leaves is the next residual. Of equals the lower index is first.

    Args:
        x_MC: what each channel adds, (M, C).
        keep: 0 to C.
    """
    x_MC = x_MC.double()
    gram_CC, y_M = x_MC.T @ x_MC, x_MC.sum(1)
    square_C, left_C = gram_CC.diagonal(), x_MC.T @ y_M  # left: x_c times the residual
    basis_CN = gram_CC.new_zeros(len(gram_CC), keep)  # x_c times the orthonormal vectors of what is in
    chosen: list[int] = []
    small = _NOTHING * float(y_M @ y_M)
    for n in range(keep):
        gain_C = torch.where(square_C > 0, left_C.square() / square_C.clamp_min(1e-300), -1.0)
        gain_C[(gain_C >= 0) & (gain_C <= small)] = 0.0
        gain_C[chosen] = -2.0
        j = first_largest(gain_C)
        chosen.append(j)
        new_C = gram_CC[:, j] - basis_CN[:, :n] @ basis_CN[j, :n]
        length = float(new_C[j])
        if length > _NOTHING * float(square_C[j]):  # else it says nothing that the others do not
            basis_CN[:, n] = new_C / length**0.5
            left_C = left_C - new_C * (left_C[j] / length)
    return sorted(chosen)


def grow_removed(x_MC: Tensor, keep: int) -> list[int]:
    """The `keep` channels that are left, in ascending order, when the others go one by one (the rule of ICCV 2017).

    Each time the channel goes that makes the sum of squares of all that is gone least; of equals the lower index.
    """
    x_MC = x_MC.double()
    gram_CC = x_MC.T @ x_MC
    square_C = gram_CC.diagonal()
    with_gone_C = torch.zeros_like(square_C)  # x_c times the sum of what is gone
    kept = torch.ones_like(square_C, dtype=torch.bool)
    for _ in range(len(kept) - keep):
        cost_C = torch.where(kept, 2 * with_gone_C + square_C, torch.inf)
        j = first_largest(-cost_C)
        kept[j] = False
        with_gone_C = with_gone_C + gram_CC[:, j]
    return kept.nonzero().flatten().tolist()


def scales(x_MC: Tensor, kept: list[int]) -> Tensor:
    """The least squares factors of the kept channels, (len(kept),), by which they add up to the whole output."""
    x_MC = x_MC.double()
    part_MN = x_MC[:, kept]
    gram_NN = part_MN.T @ part_MN
    inverse_NN: Tensor = torch.linalg.pinv(gram_NN, hermitian=True, rtol=1e-10)
    return inverse_NN @ (part_MN.T @ x_MC.sum(1))


def first_largest(values: Tensor) -> int:
    """The index of the largest value, the first of equals."""
    return int(values.cpu().numpy().argmax())
