"""AutoAttack by its authors' code: four strong attacks, each on the images that still stand (Croce and Hein 2020)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._family import ATTACKS, Adversarial, check_size
from starfire_cli.attacks._library import own_random_state, package
from starfire_cli.errors import BadOption, unknown

VERSIONS = ("standard", "plus", "rand")
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
# The targeted losses compare the four largest logits, the difference-of-logits loss the three largest.
_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


@ATTACKS.register("autoattack")
@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """The ensemble in which robust accuracies are usually reported; hundreds of passes an image.

    Args:
        eps: size of the perturbation, in pixels of [0, 1].
        norm: linf or l2.
        version: standard, plus (more restarts) or rand (for networks that draw random numbers).
        parts: a choice of its attacks, such as apgd-ce+square, in the place of a version's.
    """

    eps: float = 8 / 255
    norm: str = "linf"
    version: str = "standard"
    parts: str | None = None

    def __post_init__(self) -> None:
        check_size(self.eps, self.norm)
        if self.version not in VERSIONS:
            raise unknown("version", self.version, VERSIONS)
        for part in self._parts or ():
            if part not in PARTS:
                raise unknown("part", part, PARTS)
        if self._parts is not None and self.version != "standard":
            raise BadOption(
                f"version={self.version} and parts={self.parts} both choose the attacks; give one of the two"
            )

    @property
    def _parts(self) -> list[str] | None:
        return None if self.parts is None else [part.strip() for part in self.parts.split("+")]

    def sweep(
        self, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, *, eps: Sequence[float], draws: AttackDraws
    ) -> Iterator[Adversarial]:
        library = package("pyautoattack", "autoattack")
        with torch.no_grad():
            classes = model(images_NCHW[:1]).shape[1]
        seed = (draws.seed + int(draws.index_N[0])) % 2**31
        for size in eps:
            with own_random_state(images_NCHW.device), _listening() as heard:
                made = self._adversary(library, model, size, seed, classes, images_NCHW.device)
                found_NCHW, _ = made.run_standard_evaluation(images_NCHW, labels_N, batch_size=len(images_NCHW))
            yield Adversarial(images_NCHW=found_NCHW.detach(), notes=tuple(dict.fromkeys(heard)))

    def _adversary(
        self, library: Any, model: nn.Module, eps: float, seed: int, classes: int, device: torch.device
    ) -> Any:
        common = {"norm": {"linf": "Linf", "l2": "L2"}[self.norm], "eps": eps, "seed": seed, "device": device}
        made = library.AutoAttack(model, version=self.version, **common)
        if self._parts is not None:
            made.attacks_to_run = self._parts
        made.attacks_to_run = [part for part in made.attacks_to_run if classes >= _CLASSES.get(part, 2)]
        if not made.attacks_to_run:
            raise BadOption(f"parts={self.parts} needs more classes than the network's {classes}; apgd-ce works")
        made.apgd_targeted.n_target_classes = min(made.apgd_targeted.n_target_classes, classes - 1)
        made.fab.n_target_classes = min(made.fab.n_target_classes, classes - 1)
        return made


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """What the library warns of (it logs), collected in place of printed."""
    heard: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().split(" See ")[0].rstrip(".")
            # It points out that ten classes have nine targets, which is what was set.
            if "target classes" not in text:
                heard.append(f"AutoAttack: {text}")

    logger, handler = logging.getLogger("auto-attack"), Collect(logging.WARNING)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
