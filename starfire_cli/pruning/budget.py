"""Goals and counts: the number of competitors that a rate prunes (paper, Algorithms 1 and 3; docs/method.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

# n * t in floating point may land a hair above a whole number (0.6 * 5 = 3.0000000000000004): never prune one more. The
# hair grows with n (0.56 * 10^8 is 1.5e-8 off), so the slack does too.
_SLACK = 1e-12


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The target and the progress towards it that is due now.

    Args:
        target: the final sparsity threshold, in [0, 1).
        progress: how much of the way there is due now, in [0, 1], the era's ramp already applied.
    """

    target: float
    progress: float = 1.0

    @property
    def threshold(self) -> float:
        """The sparsity threshold t now."""
        return self.target * self.progress


def pruned(n: int, threshold: float, max_nonzero: int | None = None, progress: float = 1.0) -> int:
    """The number of `n` competing units that are pruned at `threshold` (Algorithms 1 and 3, `cutoff_index`).

    The larger of ceil(n * threshold) and, with a cap, n - max_nonzero; the cap comes in with `progress`.
    """
    slack = n * _SLACK
    by_threshold = math.ceil(n * threshold - slack)
    by_cap = 0 if max_nonzero is None else math.ceil((n - max_nonzero) * progress - slack)
    return min(n, max(0, by_threshold, by_cap))
