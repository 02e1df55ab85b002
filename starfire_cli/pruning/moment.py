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

from starfire_cli.pruning.memory_order import MemoryOrder, Places
from starfire_cli.pruning.schedule import Era

_RARE = 0.25  # the share of candidates below which they are listed rather than met by chance
_FEW = 0.01  # the share of places up to which it is faster to sort what was drawn than to look through all


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The step of an evaluation, its place in the era, and the seed of its draws.

    Args:
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

    def choose(
        self, key: str, among_N: Tensor, count: int, what: str = "", *, order: MemoryOrder | None = None
    ) -> Tensor:
        """`count` of the candidates at random, each set of them equally likely: bool, (N,).

        Args:
            key: of the layer.
            among_N: bool, the candidates.
            count: how many.
            what: a name for the draw.
            order: of the candidates; None: that of their indices, on which alone it depends which are drawn.
        """
        if count <= 0:
            return torch.zeros_like(among_N)
        chosen = _chosen(self.generator(key, what), among_N.cpu().numpy(), count, order)
        return torch.from_numpy(chosen).to(among_N.device)


def _chosen(
    draws: np.random.Generator, among_N: NDArray[np.bool_], count: int, order: MemoryOrder | None
) -> NDArray[np.bool_]:
    """`count` different candidates: bool, (N,)."""
    candidates, chosen = int(np.count_nonzero(among_N)), np.zeros(len(among_N), np.bool_)
    if candidates < _RARE * len(among_N) or count > candidates // 2:
        by_index = among_N if order is None else order.by_index(torch.from_numpy(among_N)).numpy()
        drawn = draws.choice(candidates, size=count, replace=False, shuffle=False)
        chosen[_as_places(np.flatnonzero(by_index)[drawn], order)] = True
        return chosen
    missing = count
    while missing:  # most places are candidates and few of them wanted: any are drawn, and those count that are some
        places = _as_places(draws.integers(len(among_N), size=missing), order)
        places = places[among_N[places]]
        if missing < _FEW * len(among_N):
            places = np.sort(places[~chosen[places]])
            missing -= len(places) and 1 + int(np.count_nonzero(np.diff(places)))
            chosen[places] = True
        else:
            chosen[places] = True
            missing = count - int(np.count_nonzero(chosen))
    return chosen


def _as_places(indices: Places, order: MemoryOrder | None) -> Places:
    return indices if order is None else order.places(indices)
