"""The pruning era of a training whose loop is somebody else's: shares of it, epochs or steps, as optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starfire_cli.errors import BadOption
from starfire_cli.pruning import NetworkMethod
from starfire_cli.pruning.schedule import Era
from starfire_cli.workflows.train.settings import Pruning

USUAL = (0.2, 0.6)  # of the training, where the method has no share of its own


@dataclass(frozen=True, kw_only=True)
class EraOptions:
    """The era as a caller gives it, in one of three units.

    Args:
        era: first and last, as shares of the training.
        era_epochs: in epochs.
        era_steps: in optimizer steps.
        total_steps: optimizer steps of the training.
        steps_per_epoch: optimizer steps of an epoch.
        ramp: see `Era`.
        mask_every: see `Era`.
    """

    era: tuple[float, float] | None = None
    era_epochs: tuple[float, float] | None = None
    era_steps: tuple[int, int] | None = None
    total_steps: int | None = None
    steps_per_epoch: int | None = None
    ramp: str = "linear"
    mask_every: int = 1


def era_of(when: EraOptions, pruning: Pruning) -> Era:
    """The era in steps. Raises BadOption for what is missing, contradicts itself, or has no place in the training."""
    given = {n: v for n in ("era", "era_epochs", "era_steps") if (v := getattr(when, n)) is not None}
    for name in ("total_steps", "steps_per_epoch"):
        count = getattr(when, name)
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise BadOption(f"{name}={count!r} is no number of optimizer steps; 1 or more works")
    if len(given) > 1:
        raise BadOption(f"{' and '.join(f'{n}={v!r}' for n, v in given.items())} both say when; give one")
    if isinstance(pruning.conv, NetworkMethod) and not pruning.conv.axes().has_era:
        if given:
            name, value = next(iter(given.items()))
            raise BadOption(
                f"{name}={value!r}: method={pruning.method_spec!r} makes its mask before the first step, for good; "
                f"leave {name} out"
            )
        return Era(first_step=0, last_step=1, ramp=when.ramp, mask_every=when.mask_every)
    if not pruning.target:
        return Era(first_step=0, last_step=0)  # nothing is going to be pruned
    first, last = _steps(when, pruning)
    return Era(first_step=first, last_step=last, ramp=when.ramp, mask_every=when.mask_every)


def _steps(when: EraOptions, pruning: Pruning) -> tuple[int, int]:
    if when.era_steps is not None:
        first, last = _pair("era_steps", when.era_steps, "(1000, 5000)")
        if first != int(first) or last != int(last):
            raise BadOption(f"era_steps={when.era_steps!r} is in whole optimizer steps, such as (1000, 5000)")
        return _within("era_steps", when.era_steps, int(first), int(last), when.total_steps)
    if when.era_epochs is not None:
        first, last = _pair("era_epochs", when.era_epochs, "(30, 50)")
        if when.steps_per_epoch is None:
            raise BadOption(
                f"era_epochs={when.era_epochs!r} needs steps_per_epoch=..., the optimizer steps of an epoch"
            )
        per = when.steps_per_epoch
        return _within("era_epochs", when.era_epochs, round(first * per), round(last * per), when.total_steps)
    span = pruning.conv.axes().span if isinstance(pruning.conv, NetworkMethod) else None
    shares = when.era if when.era is not None else span or USUAL
    first, last = _pair("era", shares, "(0.3, 0.6)")
    if last > 1:
        raise BadOption(
            f"era={shares!r} is in shares of the training, 0 to 1; era_epochs={shares!r} with steps_per_epoch=..., or "
            f"era_steps={shares!r}, says it otherwise"
        )
    if when.total_steps is None:
        raise BadOption(
            f"total_steps=... is missing, of which era={tuple(shares)!r} are shares; len(loader) * epochs is usual, "
            "divided by the batches that are accumulated to a step"
        )
    return _within("era", shares, round(first * when.total_steps), round(last * when.total_steps), when.total_steps)


def _pair(name: str, value: object, example: str) -> tuple[float, float]:
    numbers = tuple(value) if isinstance(value, tuple | list) else ()
    if len(numbers) != 2 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise BadOption(f"{name}={value!r} is not two numbers, first and last, such as {example}")
    first, last = float(numbers[0]), float(numbers[1])
    if not (math.isfinite(first) and math.isfinite(last) and 0 <= first < last):
        raise BadOption(f"{name}={value!r}: the first must be at least 0 and the last above it, such as {example}")
    return first, last


def _within(name: str, given: object, first: int, last: int, total: int | None) -> tuple[int, int]:
    if total is not None and last > total:
        raise BadOption(f"{name}={given!r} ends after step {last}, and total_steps={total} is less")
    if first >= last:
        raise BadOption(f"{name}={given!r} is shorter than one optimizer step")
    return first, last
