"""Checks that all ranks hold the same masks, and names the rank and layer of a difference."""

from __future__ import annotations

import torch
from torch import Tensor

from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import Mismatch
from starfire_cli.pruning import Pruner

_LOOK_EVERY = 50  # evaluations between looks at the counts where looking makes a GPU wait


class Agreement:
    """Compares the masks of all ranks; with one rank, does nothing.

    Args:
        ranks: whose masks.
        pruner: this one's.
    """

    def __init__(self, ranks: Ranks, pruner: Pruner) -> None:
        self._ranks, self._pruner = ranks, pruner
        self._apart: Tensor | None = None
        self._since = 0

    def steps(self, *numbers: int) -> None:
        """Check before training that all ranks are at one place and have as many batches; else one would wait for good.

        Raises Mismatch.
        """
        difference = self._ranks.first_difference(torch.tensor(numbers, dtype=torch.int64))
        if difference is not None:
            error = Mismatch(
                f"rank {difference[0]} has other numbers of batches than rank 0: its data are not the same"
            )
            error.agreed = True
            raise error

    def counts(self) -> None:
        """Check after an evaluation of the masks that all ranks have as many dead weights in every layer.

        On a GPU the answer comes later. Raises Mismatch that names rank and layer.
        """
        if self._ranks.count == 1:
            return
        counts = self._pruner.counts()
        if counts.device.type == "cpu":
            self._compare(counts, "a rank has another number of dead weights")
            return
        import torch.distributed as dist

        extremes = torch.cat([counts, -counts])
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        apart = extremes.view(2, -1).sum(0)
        self._apart = apart if self._apart is None else self._apart.maximum(apart)
        self._since += 1
        if self._since >= _LOOK_EVERY:
            self._settle()

    def masks(self) -> None:
        """Check at the era's end and at every save that all ranks have the very same masks.

        Raises Mismatch that names rank and layer.
        """
        if self._ranks.count == 1:
            return
        self._settle()
        # 62 bits of each layer's SHA-256.
        digests = torch.tensor([int(text[:16], 16) >> 2 for text in self._pruner.digests().values()], dtype=torch.int64)
        self._compare(digests, "a rank has another mask")

    def _settle(self) -> None:
        self._since = 0
        if self._apart is not None and bool(self._apart.any()):
            self._compare(self._pruner.counts().cpu(), "a rank has another number of dead weights")
            layer = list(self._pruner.masks)[int(self._apart.nonzero()[0])]
            raise _agreed(f"{layer}: the ranks had different numbers of dead weights for a while")

    def _compare(self, numbers: Tensor, problem: str) -> None:
        difference = self._ranks.first_difference(numbers)
        if difference is not None:
            rank, place = difference
            raise _agreed(f"{list(self._pruner.masks)[place]}: {problem} than rank 0: rank {rank}")


def _agreed(text: str) -> Mismatch:
    error = Mismatch(f"{text}; the last checkpoint was written before")
    error.agreed = True
    return error
