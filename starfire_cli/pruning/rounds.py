"""Rounds of training with pruning between them, as lottery tickets are found."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starfire_cli.errors import BadOption, unknown
from starfire_cli.numbers import parse_number, parse_whole

REWINDS = ("weights", "lr")
CONTROLS = ("none", "reinit", "shuffle")
_SLACK = 1e-9  # of logarithms, whose quotient may land a hair above a whole number


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Each round but the last ends with a pruning and a rewinding.

    Args:
        fraction: of what lives that each pruning takes; the last one takes what is left to the target.
        count: prunings; None: as many as the target needs.
        rewind: "weights" (set back to what they were) or "lr" (kept; the learning rate is set back).
        at: the place in a round that is gone back to: a step ("500") or an epoch ("2ep").
        control: what the last round trains in place of the ticket: "none", "reinit" or "shuffle".
    """

    fraction: float = 0.2
    count: int | None = None
    rewind: str = "weights"
    at: str = "0"
    control: str = "none"

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise BadOption(
                f"p={self.fraction:g} is out of range; it is the share that a pruning takes, above 0 and below 1"
            )
        if self.count is not None and self.count < 1:
            raise BadOption(f"rounds={self.count} is out of range; 1 or more prunings make a ticket")
        if self.rewind not in REWINDS:
            raise unknown("rewind", self.rewind, REWINDS)
        if self.control not in CONTROLS:
            raise unknown("control", self.control, CONTROLS)
        if self.control == "shuffle" and self.rewind == "lr":
            raise BadOption("control=shuffle moves the mask to weights that rewind=lr has left at zero; rewind=weights")
        self._place(1)

    @property
    def monotone(self) -> bool:
        """Whether what is dead stays dead."""
        return self.control != "shuffle"

    def prunings(self, target: float) -> int:
        """The number of prunings until the network has reached `target`. Raises BadOption."""
        if target <= 0:
            raise BadOption(f"--target {target:g} is reached in 0 rounds; --target above 0, or --method dense")
        needed = max(1, math.ceil(math.log1p(-target) / math.log1p(-self.fraction) - _SLACK))
        if self.count is not None and self.count > needed:
            raise BadOption(
                f"rounds={self.count} is more than it takes: with p={self.fraction:g} the {needed}. pruning reaches "
                f"--target {target:g}; at most rounds={needed}, or a smaller p"
            )
        return needed if self.count is None else self.count

    def sparsity(self, done: int, target: float) -> float:
        """The sparsity after so many prunings: 1 - (1 - p)^i, and the target after the last."""
        return target if done >= self.prunings(target) else min(target, 1 - (1 - self.fraction) ** done)

    def rewind_step(self, steps: int, steps_per_epoch: int) -> int:
        """The step of a round that is gone back to. Raises BadOption where a round of `steps` has no such step."""
        step = self._place(steps_per_epoch)
        if step >= steps:
            raise BadOption(
                f"rewind_at={self.at} is step {step}, and a round has {steps} ({steps_per_epoch} an epoch); at most "
                f"rewind_at={steps - 1}, or more --epochs, which are those of one round"
            )
        return step

    def _place(self, steps_per_epoch: int) -> int:
        text = self.at.removesuffix("ep")
        try:
            place = parse_number(text) * steps_per_epoch if text != self.at else parse_whole(text)
        except ValueError:
            place = -1
        if not 0 <= place < math.inf:
            raise BadOption(f"rewind_at={self.at} is neither a step, such as 500, nor an epoch, such as 2ep")
        return round(place)
