"""What a training step needs of an attack: adversarial images for the clean ones, and nothing else changed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starfire_cli.attacks._family import ATTACKS, Attack

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """An attack as training uses it.

    Args:
        attack: what moves the images, by its own eps.
        seed: of random starts; together with the step it says all there is to say about them.
    """

    attack: Attack
    seed: int = 0

    def perturb(
        self, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, *, step: int, places_N: Tensor | None = None
    ) -> Tensor:
        """Adversarial images, (N, C, H, W), detached, made in whatever autocast the caller is in.

        The network is attacked in eval mode: no BatchNorm statistic, gradient, flag or random generator changes.

        Args:
            model: from pixels in [0, 1] to logits; under DDP the module inside.
            images_NCHW: float32 in [0, 1].
            labels_N: the true classes, int64.
            step: number of this batch since training began; after a resume the same number gives the same images.
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
    """`fgsm:eps=8/255` or `pgd:eps=8/255,steps=7` as training uses it: FGSM with its random start. Raises BadOption."""
    attack = ATTACKS.build(spec)
    # A single step from the image itself soon teaches a network to hide its gradients (Wong et al. 2020).
    names = [f.name for f in dataclasses.fields(attack)]  # type: ignore[arg-type]
    if "random_start" in names and getattr(attack, "random_start") is None:  # noqa: B009 - not every attack has it
        attack = dataclasses.replace(attack, random_start=True)  # type: ignore[type-var]
    return Adversary(attack=attack, seed=seed)
