"""Parses perturbation sizes such as `0,0.01,0.05`, `8/255` and `0:0.1:0.01`, exactly: a range includes its end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from starfire_cli.attacks._family import check_size
from starfire_cli.errors import BadOption

_MOST = 1000


@dataclass(frozen=True, order=True)
class Size:
    """A perturbation's size: the number, and its text as given (`8/255`)."""

    eps: float
    label: str


def parse_sizes(text: str, norm: str) -> tuple[Size, ...]:
    """The sizes in `text`, ascending, each once: numbers, fractions and start:end:step (the end included), with commas.

    Raises BadOption that repeats the text.
    """
    found: dict[float, Size] = {}
    if not text.strip():
        raise BadOption(f"--eps {text!r} names no size; 0,0.01,0.05 or 0:0.1:0.01 or 8/255 works")
    for part in (p.strip() for p in text.split(",")):
        for exact in _exact(part, text):
            size = Size(float(exact), _label(exact, "/" in part))
            try:
                check_size(size.eps, norm)
            except BadOption as error:
                raise BadOption(f"--eps {text!r}: {error}") from None
            found.setdefault(size.eps, size)
    return tuple(sorted(found.values()))


def _exact(part: str, text: str) -> list[Fraction]:
    try:
        numbers = [_number(n) for n in part.split(":")]
    except (ValueError, ZeroDivisionError):
        raise BadOption(f"--eps {text!r}: {part!r} is no size; 0.01, 8/255 and 0:0.1:0.01 are") from None
    if len(numbers) == 1:
        return numbers
    if len(numbers) != 3 or numbers[2] <= 0 or numbers[1] < numbers[0]:
        raise BadOption(f"--eps {text!r}: {part!r} is no range; start:end:step with a step above 0, such as 0:0.1:0.01")
    start, end, step = numbers
    if (end - start) / step > _MOST:
        raise BadOption(f"--eps {text!r}: {part!r} is {int((end - start) / step) + 1} sizes; at most {_MOST} work")
    return [start + number * step for number in range(int((end - start) / step) + 1)]


def _number(text: str) -> Fraction:
    above, slash, below = text.partition("/")
    for number in (above, below) if slash else (above,):  # a Fraction takes any exponent, and then all the memory
        if not re.fullmatch(r"\s*[+-]?[0-9_.]{1,40}(e[+-]?[0-9]{1,2})?\s*", number, re.ASCII | re.IGNORECASE):
            raise ValueError(text)
    return Fraction(above) / (Fraction(below) if slash else 1)


def _label(exact: Fraction, as_fraction: bool) -> str:
    levels = exact * 255
    return f"{levels}/255" if as_fraction and exact and levels.denominator == 1 else f"{float(exact):.15g}"
