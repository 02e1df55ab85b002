"""The family of attacks and the interface of its members; imports no torch, so that `--help` stays fast.

N images, each (C, H, W), pixels in [0, 1]; `eps` is the size of a perturbation in these pixels: the most that a single
value moves (linf) or the Euclidean length of the whole perturbation (l2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from starfire_cli.errors import BadOption
from starfire_cli.registry import Family

if TYPE_CHECKING:
    from torch import Tensor, nn

    from starfire_cli.attacks._draws import AttackDraws

NORMS = ("linf", "l2")


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Adversarial images of a batch at one eps.

    Args:
        images_NCHW: float32 in [0, 1], no further than eps from the originals.
        blind_N: where the very first input gradient was zero (or not finite) in every pixel, so that the attack had
            nothing to follow; None from attacks that do not look.
        notes: what the attack warns of, one sentence each.
    """

    images_NCHW: Tensor
    blind_N: Tensor | None = None
    notes: tuple[str, ...] = ()


class Attack(Protocol):
    """Moves images so that a network misclassifies them.

    One whose `sweep` may be captured in a CUDA graph has the attribute `captured`, which is True.
    """

    @property
    def eps(self) -> float:
        """The size to use where no list of sizes is given (training)."""
        ...

    @property
    def norm(self) -> str:
        """The norm that measures the size of a perturbation: one of `NORMS`."""
        ...

    def sweep(
        self, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, *, eps: Sequence[float], draws: AttackDraws
    ) -> Iterator[Adversarial]:
        """One `Adversarial` for each value of `eps`, in order.

        Args:
            model: from pixels in [0, 1] to logits; frozen (see `_gradient.frozen`) by the caller.
            images_NCHW: float32 in [0, 1].
            labels_N: the true classes, int64.
            eps: sizes, each above 0.
            draws: where every random number comes from.
        """
        ...


ATTACKS: Family[Attack] = Family("attack", "starfire_cli.attacks")


def check_size(eps: float, norm: str) -> None:
    """Raises BadOption unless `eps` is a size that `norm` knows."""
    if norm not in NORMS:
        raise BadOption(f"norm={norm!r} is not known; there are: {', '.join(NORMS)}")
    if norm == "linf" and not 0 <= eps <= 1:
        hint = f"; {eps:g}/255?" if 1 < eps <= 255 else ""
        raise BadOption(f"eps={eps:g} is outside [0, 1]: pixels are in [0, 1]{hint}")
    if not 0 <= eps < float("inf"):
        raise BadOption(f"eps={eps:g} is no length; it is 0 or more")


def with_options(attack: Attack, **options: Any) -> Attack:
    """`attack` with those `options` that are not None put in the place of its own. Raises BadOption."""
    given = {key: value for key, value in options.items() if value is not None}
    known = [f.name for f in dataclasses.fields(attack) if f.init]  # type: ignore[arg-type]
    if strange := sorted(set(given) - set(known)):
        name = ATTACKS.spec(attack).partition(":")[0]
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in strange)
        raise BadOption(f"{flags}: attack {name} has no such option; it has: {', '.join(known)}")
    changed: Attack = dataclasses.replace(attack, **given)  # type: ignore[type-var]
    return changed
