"""The fast gradient sign method: one gradient, one step (paper, section 3.2; Goodfellow et al. 2014)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from starfire_cli.attacks._ball import direction, project, random_start
from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._family import ATTACKS, Adversarial, check_size
from starfire_cli.attacks._gradient import blind, input_gradient
from starfire_cli.errors import BadOption


@ATTACKS.register("fgsm")
@dataclass(frozen=True, kw_only=True)
class FGSM:
    """`clip(x + eps * sign(dL/dx), 0, 1)`; with l2 the gradient over its length in place of its sign.

    Without a random start the gradient is the same for every eps, and is computed once for all of them.

    Args:
        eps: size of the perturbation, in pixels of [0, 1].
        norm: linf or l2.
        random_start: begin anywhere in the ball (Wong et al. 2020). None: no when measuring, yes when training.
        step_size: length of the step; None: eps, or 1.25 eps after a random start.
    """

    eps: float = 8 / 255
    norm: str = "linf"
    random_start: bool | None = None
    step_size: float | None = None

    captured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_size(self.eps, self.norm)
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise BadOption(f"step_size={self.step_size:g} is no step; it is above 0")

    def sweep(
        self, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, *, eps: Sequence[float], draws: AttackDraws
    ) -> Iterator[Adversarial]:
        if self.random_start:
            for size in eps:
                start_NCHW = random_start(images_NCHW, size, self.norm, draws, stream=0)
                gradient_NCHW = input_gradient(model, start_NCHW, labels_N)
                step = 1.25 * size if self.step_size is None else self.step_size
                moved_NCHW = start_NCHW + step * direction(gradient_NCHW, self.norm)
                found_NCHW = project(moved_NCHW, images_NCHW, size, self.norm)
                yield Adversarial(images_NCHW=found_NCHW, blind_N=blind(gradient_NCHW))
            return
        gradient_NCHW = input_gradient(model, images_NCHW, labels_N)
        towards_NCHW, blind_N = direction(gradient_NCHW, self.norm), blind(gradient_NCHW)
        for size in eps:
            step = size if self.step_size is None else min(self.step_size, size)
            yield Adversarial(images_NCHW=(images_NCHW + step * towards_NCHW).clamp(0, 1), blind_N=blind_N)
