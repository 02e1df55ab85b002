"""Noise of the same size that knows nothing of the network: the control beside every attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from starfire_cli.attacks._ball import random_direction
from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._family import ATTACKS, Adversarial, check_size


@ATTACKS.register("noise")
@dataclass(frozen=True, kw_only=True)
class Noise:
    """`clip(x + eps * random sign, 0, 1)`, the same signs for every eps; l2: a random direction of length eps.

    Args:
        eps: size of the perturbation, in pixels of [0, 1].
        norm: linf or l2.
    """

    eps: float = 8 / 255
    norm: str = "linf"

    def __post_init__(self) -> None:
        check_size(self.eps, self.norm)

    def sweep(
        self, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, *, eps: Sequence[float], draws: AttackDraws
    ) -> Iterator[Adversarial]:
        towards_NCHW = random_direction(images_NCHW, self.norm, draws)
        for size in eps:
            yield Adversarial(images_NCHW=(images_NCHW + size * towards_NCHW).clamp(0, 1))
