"""The moment of an evaluation, as methods see it, and the random draws that belong to it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfire_cli.pruning.schedule import Era

_RARE = 0.25  # the share of candidates below which they are listed rather than met by chance


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Args:
    step: the optimizer step that is under way, from 1; 0 before training.
    era: when masks change.
    target: the final sparsity.
    seed: of the run.
    memory: what the method remembers from one evaluation to the next, as plain numbers; kept in checkpoints.
    """

    step: int
    era: Era
    target: float
    seed: int
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """The share of the target that is due."""
        return self.era.progress(self.step)

    @property
    def passed(self) -> float:
        """The share of the era that is over, in [0, 1]."""
        if self.step >= self.era.last_step:
            return 1.0
        return max(0.0, (self.step - self.era.first_step) / (self.era.last_step - self.era.first_step))

    def cosine(self, start: float, end: float = 0.0) -> float:
        """From `start` to `end` over the era, along half a cosine."""
        return end + (start - end) * (1 + math.cos(math.pi * self.passed)) / 2

    def generator(self, key: str, what: str = "") -> np.random.Generator:
        """Random numbers that depend on seed, layer and step alone, so that ranks and resumed runs draw alike."""
        text = f"{self.seed}\0{key}\0{self.step}\0{what}".encode()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(text).digest()[:16], "little")))

    def choose(self, key: str, among_N: Tensor, count: int, what: str = "") -> Tensor:
        """`count` of the candidates at random, each set of them equally likely: bool, (N,)."""
        if count <= 0:
            return torch.zeros_like(among_N)
        chosen = _chosen(self.generator(key, what), among_N.cpu().numpy(), count)
        return torch.from_numpy(chosen).to(among_N.device)


def _chosen(draws: np.random.Generator, among_N: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """`count` different candidates: bool, (N,)."""
    candidates, chosen = int(np.count_nonzero(among_N)), np.zeros(len(among_N), np.bool_)
    if candidates < _RARE * len(among_N) or count > candidates // 2:
        places = np.flatnonzero(among_N)
        chosen[places[draws.choice(candidates, size=count, replace=False, shuffle=False)]] = True
        return chosen
    missing = count
    while missing:  # most places are candidates and few of them wanted: any are drawn, and those count that are some
        places = draws.integers(len(among_N), size=missing)
        chosen[places[among_N[places]]] = True
        missing = count - int(np.count_nonzero(chosen))
    return chosen
