"""Projected gradient descent: many small steps inside the eps-ball, from several starts (Madry et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starfire_cli.attacks._ball import direction, project, random_start
from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._family import ATTACKS, Adversarial, check_size
from starfire_cli.attacks._gradient import blind, input_gradient
from starfire_cli.errors import BadOption

MOST = 100_000  # steps or restarts; far more than anything published takes


@ATTACKS.register("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD:
    """Steps along the gradient's sign (l2: its direction), each followed by a projection into the ball.

    Args:
        eps: size of the perturbation, in pixels of [0, 1].
        norm: linf or l2.
        steps: gradients a start.
        step_size: length of a step; None: 2.5 eps / steps, enough to cross the ball.
        restarts: starts an image; only images that still stand are attacked again.
        random_start: begin anywhere in the ball; without it, at the image itself.
    """

    eps: float = 8 / 255
    norm: str = "linf"
    steps: int = 10
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True

    def __post_init__(self) -> None:
        check_size(self.eps, self.norm)
        for name, number in (("steps", self.steps), ("restarts", self.restarts)):
            if not 1 <= number <= MOST:
                raise BadOption(
                    f"{name}={number} is too {'few; at least 1' if number < 1 else f'many; at most {MOST}'}"
                )
        if self.restarts > 1 and not self.random_start:
            raise BadOption(
                f"restarts={self.restarts} without random_start would repeat one start; give one of the two"
            )
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise BadOption(f"step_size={self.step_size:g} is no step; it is above 0")

    @property
    def captured(self) -> bool:
        """Whether it may be part of a CUDA graph: restarts look which images still stand."""
        return self.restarts == 1

    def sweep(
        self, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, *, eps: Sequence[float], draws: AttackDraws
    ) -> Iterator[Adversarial]:
        for size in eps:
            found_NCHW, blind_N = self._ascend(model, images_NCHW, labels_N, size, draws, 0)
            if self.restarts > 1:
                found_NCHW = found_NCHW.clone()
                best_N, fooled_N = _losses_and_errors(model, found_NCHW, labels_N)
                for restart in range(1, self.restarts):
                    rest_M = (~fooled_N).nonzero().flatten()
                    if not len(rest_M):
                        break
                    again_MCHW, _ = self._ascend(
                        model, images_NCHW[rest_M], labels_N[rest_M], size, draws.take(rest_M), restart
                    )
                    loss_M, fooled_M = _losses_and_errors(model, again_MCHW, labels_N[rest_M])
                    better = fooled_M | (loss_M > best_N[rest_M])
                    found_NCHW[rest_M[better]] = again_MCHW[better]
                    best_N[rest_M[better]] = loss_M[better]
                    fooled_N[rest_M] = fooled_M
            yield Adversarial(images_NCHW=found_NCHW, blind_N=blind_N)

    def _ascend(
        self, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, eps: float, draws: AttackDraws, restart: int
    ) -> tuple[Tensor, Tensor]:
        step = 2.5 * eps / self.steps if self.step_size is None else self.step_size
        at_NCHW = random_start(images_NCHW, eps, self.norm, draws, restart) if self.random_start else images_NCHW
        blind_N = torch.zeros_like(labels_N, dtype=torch.bool)
        for number in range(self.steps):
            gradient_NCHW = input_gradient(model, at_NCHW, labels_N)
            if number == 0:
                blind_N = blind(gradient_NCHW)
            at_NCHW = project(at_NCHW + step * direction(gradient_NCHW, self.norm), images_NCHW, eps, self.norm)
        return at_NCHW, blind_N


@torch.no_grad()
def _losses_and_errors(model: nn.Module, images_NCHW: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each image, and whether it is misclassified, (N,) each."""
    logits_NK = model(images_NCHW).float()
    return cross_entropy(logits_NK, labels_N, reduction="none"), logits_NK.argmax(1) != labels_N
