"""Which images are near enough: steps along a gradient, random points, and the way back into the eps-ball and [0, 1].

For linf the operations and their order are those of torchattacks and foolbox: pixels come out bit for bit equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from starfire_cli.attacks._draws import AttackDraws

_TINY = 1e-12  # lengths below it are taken for it, so that a zero gradient gives no step in place of NaN


def direction(gradient_NCHW: Tensor, norm: str) -> Tensor:
    """The step of length 1 that climbs most: the sign (linf), or the gradient over its length (l2); 0 where it is 0."""
    if norm == "linf":
        return gradient_NCHW.sign()
    gradient_NCHW = gradient_NCHW.nan_to_num(0.0, 0.0, 0.0)
    # By the largest entry first: the square of a gradient below 1e-19 is 0 in float32.
    scaled = gradient_NCHW / gradient_NCHW.abs().flatten(1).amax(1).clamp_min(1e-38).view(-1, 1, 1, 1)
    return scaled / _length(scaled)


def project(moved_NCHW: Tensor, images_NCHW: Tensor, eps: float, norm: str) -> Tensor:
    """The nearest point of the eps-ball around `images_NCHW`, then clipped to [0, 1]."""
    change = moved_NCHW - images_NCHW
    change = change.clamp(-eps, eps) if norm == "linf" else change * (eps / _length(change)).clamp_max(1)
    return (images_NCHW + change).clamp(0, 1)


def random_start(images_NCHW: Tensor, eps: float, norm: str, draws: AttackDraws, stream: int) -> Tensor:
    """A point drawn evenly from the eps-ball around each image, clipped to [0, 1]."""
    shape = tuple(images_NCHW.shape[1:])
    if norm == "linf":
        change = (2 * draws.uniform(shape, stream) - 1) * eps
    else:
        # In P dimensions the share of a ball within radius r is r ** P.
        radius = draws.uniform((1, 1, 1), 4 * stream + 3) ** (1 / images_NCHW[0].numel())
        change = random_direction(images_NCHW, norm, draws, stream) * radius * eps
    return (images_NCHW + change).clamp(0, 1)


def random_direction(images_NCHW: Tensor, norm: str, draws: AttackDraws, stream: int = 0) -> Tensor:
    """Length 1 in `norm`, no direction preferred: a random sign a pixel (linf), or a point on the sphere (l2)."""
    shape = tuple(images_NCHW.shape[1:])
    if norm == "linf":
        return torch.where(draws.uniform(shape, stream) < 0.5, -1.0, 1.0)
    gaussian = draws.normal(shape, 2 * stream)
    return gaussian / _length(gaussian)


def _length(x_NCHW: Tensor) -> Tensor:
    length_N: Tensor = torch.linalg.vector_norm(x_NCHW.flatten(1), dim=1)
    return length_N.clamp_min(_TINY).view(-1, 1, 1, 1)
