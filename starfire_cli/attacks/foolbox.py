"""Any attack of the library foolbox, by the name that it has there (Rauber et al. 2020)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._family import ATTACKS, Adversarial, check_size
from starfire_cli.attacks._library import own_random_state, package
from starfire_cli.errors import BadOption


@ATTACKS.register("foolbox")
@dataclass(frozen=True, kw_only=True)
class Foolbox:
    """One of foolbox's attacks; those that look for the smallest perturbation run once for all eps.

    Args:
        attack: its class there, such as LInfFMNAttack, LinfDeepFoolAttack, L2CarliniWagnerAttack.
        eps: size of the perturbation, in pixels of [0, 1].
        steps: how many it makes; None: the library's own number.
    """

    attack: str = "LInfFMNAttack"
    eps: float = 8 / 255
    steps: int | None = None

    def __post_init__(self) -> None:
        check_size(self.eps, "l2")
        if self.steps is not None and self.steps < 1:
            raise BadOption(f"steps={self.steps} is too few; at least 1")

    @property
    def norm(self) -> str:
        """Linf or l2, as the library says of the attack. Raises BadOption for others."""
        distances = package("foolbox", "foolbox").distances
        for name in ("linf", "l2"):
            if getattr(self._made, "distance", None) is getattr(distances, name):
                return name
        raise BadOption(f"attack={self.attack} measures neither linf nor l2; one that does: LInfFMNAttack")

    @property
    def _made(self) -> Any:
        attacks = package("foolbox", "foolbox").attacks
        made = getattr(attacks, self.attack, None)
        if not (inspect.isclass(made) and issubclass(made, attacks.Attack) and not inspect.isabstract(made)):
            names = [n for n, c in vars(attacks).items() if inspect.isclass(c) and issubclass(c, attacks.Attack)]
            close = get_close_matches(self.attack, names, n=3) or ["LInfFMNAttack", "LinfDeepFoolAttack", "L2FMNAttack"]
            raise BadOption(
                f"foolbox has no attack {self.attack!r}; it has {', '.join(close)} and {len(names) - len(close)} more"
            )
        options = {} if self.steps is None else {"steps": self.steps}
        try:
            return made(**options)
        except TypeError:
            raise BadOption(
                f"attack={self.attack} cannot be made with {options or 'no options'}; try another"
            ) from None

    def sweep(
        self, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, *, eps: Sequence[float], draws: AttackDraws
    ) -> Iterator[Adversarial]:
        library, made = package("foolbox", "foolbox"), self._made
        with own_random_state(images_NCHW.device):
            torch.manual_seed((draws.seed + int(draws.index_N[0])) % 2**31)
            wrapped = library.PyTorchModel(model, bounds=(0, 1), device=images_NCHW.device)
            goal = library.Misclassification(labels_N)
            _, found, _ = made(wrapped, images_NCHW, goal, epsilons=list(eps))
        for found_NCHW in found:
            yield Adversarial(images_NCHW=found_NCHW.detach())
