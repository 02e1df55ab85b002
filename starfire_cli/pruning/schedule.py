"""Pruning schedules: the share of the target that is due at each optimizer step (paper, section 2, figure 1b)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from starfire_cli.errors import BadOption, unknown

RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cubic": lambda x: 1 - (1 - x) ** 3,  # Zhu and Gupta (2017), equation 1 with an initial sparsity of zero
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
}


@dataclass(frozen=True, kw_only=True)
class Era:
    """The pruning era, in optimizer steps counted from the start of training.

    Args:
        first_step: after this many steps pruning begins; until then nothing goes.
        last_step: after this many steps the target is met and the mask is fixed for good.
        ramp: "linear", "cubic" or "cosine".
        mask_every: the mask is evaluated after every n-th step of the era, and at its last.
        doublings: shares of the era after each of which `mask_every` is twice what it was; the clock begins anew there.
    """

    first_step: int
    last_step: int
    ramp: str = "linear"
    mask_every: int = 1
    doublings: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.ramp not in RAMPS:
            raise unknown("ramp", self.ramp, RAMPS)
        if not 0 <= self.first_step <= self.last_step:
            raise BadOption(f"an era from step {self.first_step} to step {self.last_step} runs backwards")
        if self.mask_every < 1:
            raise BadOption(f"--mask-every {self.mask_every}: masks are evaluated every 1 or more steps")

    def progress(self, step: int) -> float:
        """The share of the target that is due after `step` steps, in [0, 1]."""
        if step >= self.last_step:
            return 1.0
        if step <= self.first_step:
            return 0.0
        return RAMPS[self.ramp]((step - self.first_step) / (self.last_step - self.first_step))

    def evaluates_at(self, step: int) -> bool:
        """Whether the mask is evaluated after this step."""
        if step == self.last_step:
            return True
        return self.on_clock(step)

    def on_clock(self, step: int) -> bool:
        """Whether the step is one of the era's evaluations by the clock alone."""
        if not self.first_step < step <= self.last_step:
            return False
        start, every = self.first_step, self.mask_every
        for share in self.doublings:
            doubled = self.first_step + round(share * (self.last_step - self.first_step))
            if step <= doubled:
                break
            start, every = doubled, 2 * every
        return (step - start) % every == 0


def parse_era(text: str, epochs: int, steps_per_epoch: int) -> tuple[int, int]:
    """`FIRST:LAST` in epochs (fractions allowed) to optimizer steps. Raises BadOption that says what would work."""
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError:
        raise BadOption(f"--era {text!r} is not FIRST:LAST in epochs, such as 0:10 or 2.5:7") from None
    if not (math.isfinite(first) and math.isfinite(last) and 0 <= first < last):
        raise BadOption(f"--era {text!r}: FIRST must be at least 0 and LAST after it, such as 0:{epochs}")
    if last > epochs:
        raise BadOption(f"--era {text!r} ends after the last of {epochs} epochs; LAST is at most {epochs}")
    steps = round(first * steps_per_epoch), round(last * steps_per_epoch)
    if steps[0] == steps[1]:
        raise BadOption(f"--era {text!r} is shorter than one step of training ({steps_per_epoch} steps an epoch)")
    return steps
