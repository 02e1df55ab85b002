"""Parses numbers as people write them on a command line, and checks their size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from starfire_cli.errors import BadOption

T = TypeVar("T", int, float)

RGB = tuple[float, float, float]
"""Red, green and blue."""

LARGEST = 3.4e38
"""Of a float: the largest of float32, in which networks compute."""

LARGEST_WHOLE = 2**63 - 1
"""Of a whole number: the largest of int64, in which torch and numpy count."""


def parse_number(text: str) -> float:
    """`0.01` or `8/255` to a float. Raises ValueError, also for what is not finite."""
    above, slash, below = text.partition("/")
    try:
        number = float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a number") from None
    if not abs(number) <= LARGEST:
        raise ValueError(f"{text!r} is not a number below {LARGEST:g}")
    return number


def parse_whole(text: str) -> int:
    """`12` to an int. Raises ValueError, also for what int64 does not hold."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", text, re.ASCII) or abs(int(text)) > LARGEST_WHOLE:
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def parse_list(option: str, text: str, one: Callable[[str], T], example: str) -> tuple[T, ...]:
    """`30,60` to numbers, each read by `one`. Raises BadOption that repeats the part that is none."""
    found = []
    for part in text.split(","):
        try:
            found.append(one(part))
        except ValueError:
            raise BadOption(f"{option} {text!r}: {part.strip()!r} is no number in a list such as {example}") from None
    return tuple(found)


def parse_input(text: str | None) -> tuple[int, int] | None:
    """`3x224x224` to (channels, pixels a side). Raises BadOption."""
    if text is None:
        return None
    parts: list[Any] = text.lower().replace("*", "x").split("x")
    if (
        not all(p.isdecimal() and len(p) < 6 and 0 < int(p) <= 1 << 14 for p in parts)
        or len(parts) != 3
        or parts[1] != parts[2]
    ):
        raise BadOption(f"--input {text!r} is not channels x height x width of square images, such as 3x224x224")
    return int(parts[0]), int(parts[1])


def parse_mean(option: str, text: str) -> RGB:
    """`0.485,0.456,0.406`, or one number for all three channels. Raises BadOption."""
    return _channels(option, text, 0.0, "from 0 to 1, such as 0.485,0.456,0.406")


def parse_std(option: str, text: str) -> RGB:
    """`0.229,0.224,0.225`, or one number for all three channels. Raises BadOption."""
    # What is less, float32 cannot divide by.
    return _channels(option, text, 1e-6, "above 0 and up to 1, such as 0.229,0.224,0.225")


def _channels(option: str, text: str, least: float, wanted: str) -> RGB:
    try:
        numbers = [parse_number(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    if len(numbers) != 3 or not all(least <= number <= 1 for number in numbers):  # not for NaN either
        raise BadOption(f"{option} {text!r} is not three numbers (or one for all) {wanted}: pixels are in [0, 1]")
    red, green, blue = numbers
    return red, green, blue


def check_value(flag: str, value: object) -> None:
    """Raises BadOption for a number that nothing can be done with; what is no number passes."""
    if isinstance(value, bool):
        return
    if isinstance(value, float) and not abs(value) <= LARGEST:
        raise BadOption(f"{flag} {value:g} is not a number that can be computed with; up to {LARGEST:g} works")
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        shown = value if math.log10(abs(value)) < 40 else "..."
        raise BadOption(f"{flag} {shown} is out of range: a whole number below 2 ** 63")
