"""Adversarial training: replaces the clean images of a step by adversarial ones and changes nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starfire_cli.attacks._family import ATTACKS, Attack

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """An attack in the form that training calls.

    Args:
        attack: what moves the images, by its own eps.
        seed: of random starts; together with the step it says all there is to say about them.
    """

    attack: Attack
    seed: int = 0

    @property
    def captured(self) -> bool:
        """Whether the attack may be part of a captured CUDA graph: nothing in it depends on what the host sees."""
        return bool(getattr(self.attack, "captured", False))

    def perturb(
        self,
        model: nn.Module,
        images_NCHW: Tensor,
        labels_N: Tensor,
        *,
        step: int | Tensor,
        places_N: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images, (N, C, H, W), detached, computed in the caller's autocast.

        The network is attacked in eval mode: no BatchNorm statistic, gradient, flag or random generator changes.

        Args:
            model: from pixels in [0, 1] to logits; under DDP the module inside.
            images_NCHW: float32 in [0, 1].
            labels_N: the true classes, int64.
            step: number of this batch since training began; after a resume the same number gives the same images. As
                an int64 tensor it is read on its device, by a captured step too.
            places_N: the images' places in the batch, int64, where they are a part of it: with them each image gets
                the start that it would get in the whole; None: they are all of it, in order.
        """
        import torch

        from starfire_cli.attacks._draws import AttackDraws
        from starfire_cli.attacks._gradient import frozen

        if places_N is None:
            places_N = torch.arange(len(images_NCHW), device=images_NCHW.device)
        draws = AttackDraws(seed=self.seed, index_N=(step << 32) + places_N)
        if self.attack.eps == 0:
            return images_NCHW
        with frozen(model):
            (made,) = self.attack.sweep(model, images_NCHW, labels_N, eps=[self.attack.eps], draws=draws)
        return made.images_NCHW.detach()


def adversary(spec: str, seed: int = 0) -> Adversary:
    """Builds `fgsm:eps=8/255` or `pgd:eps=8/255,steps=7` for training: FGSM with its random start. Raises BadOption."""
    attack = ATTACKS.build(spec)
    # A single step from the image itself soon teaches a network to hide its gradients (Wong et al. 2020).
    names = [f.name for f in dataclasses.fields(attack)]  # type: ignore[arg-type]
    if "random_start" in names and getattr(attack, "random_start") is None:  # noqa: B009 - not every attack has it
        attack = dataclasses.replace(attack, random_start=True)  # type: ignore[type-var]
    return Adversary(attack=attack, seed=seed)
