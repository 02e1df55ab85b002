"""Options that several methods of the whole network share, and their ranges."""

from __future__ import annotations

from collections.abc import Collection

from starfire_cli.errors import BadOption, unknown
from starfire_cli.pruning.allocation import ALLOCATIONS
from starfire_cli.pruning.schedule import RAMPS

SHAPED = tuple(name for name in ALLOCATIONS if name != "global")  # what shapes alone decide


def check_every(every: int | None) -> None:
    """Raises BadOption unless masks are evaluated every so many steps."""
    if every is not None and every < 1:
        raise BadOption(f"every={every} is out of range; masks are evaluated every 1 or more steps")


def check_interval(interval: int | None) -> None:
    """Raises BadOption unless channels are removed after every so many epochs."""
    if interval is not None and interval < 1:
        raise BadOption(f"interval={interval} is out of range; channels are removed every 1 or more epochs")


def check_fraction(name: str, value: float, *, least: float = 0.0) -> None:
    """Raises BadOption unless `value` is a fraction of 1."""
    if not (least <= value < 1):
        raise BadOption(f"{name}={value:g} is out of range; it is a fraction, {least:g} to below 1")


def check_positive(name: str, value: float) -> None:
    """Raises BadOption unless `value` is above 0 and finite."""
    if not 0 < value < float("inf"):
        raise BadOption(f"{name}={value:g} is out of range; it is above 0")


def check_not_negative(name: str, value: float) -> None:
    """Raises BadOption unless `value` is 0 or more and finite."""
    if not 0 <= value < float("inf"):
        raise BadOption(f"{name}={value:g} is out of range; it is 0 or more")


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Raises BadOption that lists what there is."""
    if value not in known:
        raise unknown(name, value, known)


def check_ramp(ramp: str) -> None:
    """Raises BadOption for a ramp there is not."""
    if ramp not in RAMPS:
        raise unknown("ramp", ramp, RAMPS)
