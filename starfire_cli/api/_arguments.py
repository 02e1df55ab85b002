"""Arguments that several functions of the Python interface take, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

from starfire_cli.errors import BadOption
from starfire_cli.numbers import RGB

AnyPath = str | PathLike[str]
SAVED = "; starfire.save(path, pruner) writes a file"


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Mean and std of pixels in [0, 1], of red, green and blue; None where nothing is said."""

    mean: RGB | None = None
    std: RGB | None = None

    @classmethod
    def given(cls, mean: object, std: object) -> Normalisation:
        """Both as triples; one number, as of grey images, is that of all three. Raises BadOption for other things."""
        return cls(mean=_triple("mean", mean), std=_triple("std", std))


def path_argument(name: str, given: object, *, hint: str = "") -> Path:
    """A path from Python. Raises BadOption for other things; `hint` says where they go."""
    if not isinstance(given, str | PathLike):
        kind = type(given).__name__
        raise BadOption(f"{name} is {_article(kind)} {kind}; a path works{hint}")
    return Path(given)


def whole_argument(name: str, given: object) -> int | None:
    """A whole number of 1 or more, or None. Raises BadOption."""
    if given is None:
        return None
    number = plain(given)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise BadOption(f"{name}={given!r} is no whole number of 1 or more")
    return number


def plain(given: Any) -> Any:
    """Numbers of numpy and torch, and lists, tuples and arrays of them, as Python's own; other things as they are."""
    if isinstance(given, list | tuple):
        return tuple(map(plain, given))
    if hasattr(given, "tolist") and getattr(given, "ndim", None) in (0, 1):
        listed = given.tolist()
        return tuple(listed) if isinstance(listed, list) else listed
    return given


def model_spec(given: object) -> str | None:
    """The name of a network, or None. Raises BadOption for anything else."""
    if given is not None and not isinstance(given, str):
        raise BadOption(f"model is a {type(given).__name__}; its name works, such as model='resnet50'")
    return given


def channel_numbers(name: str, given: Any) -> tuple[float, ...] | None:
    """A mean or std as numbers, one a channel, from a list of them, a tensor, an array, or a number for all.

    Raises BadOption for what pixels in [0, 1] cannot have.
    """
    if given is None:
        return None
    listed = given.flatten().tolist() if hasattr(given, "tolist") and hasattr(given, "flatten") else given
    every = list(listed) if isinstance(listed, Sequence) and not isinstance(listed, str) else [listed]
    least = _LEAST[name]
    numbers = [float(x) for x in every if not isinstance(x, bool) and isinstance(x, Real)]
    if not every or len(numbers) < len(every) or not all(least <= number <= 1 for number in numbers):
        raise BadOption(f"{name}={given!r} is not {_wanted(name)}")
    return tuple(numbers)


def _triple(name: str, given: object) -> RGB | None:
    numbers = channel_numbers(name, given)
    if numbers is None:
        return None
    if len(numbers) not in (1, 3):
        raise BadOption(f"{name}={given!r} is not {_wanted(name)}")
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


_LEAST = {"mean": 0.0, "std": 1e-6}  # by less, float32 cannot divide


def _wanted(name: str) -> str:
    span = "above 0 and up to 1" if _LEAST[name] else "from 0 to 1"
    return f"three numbers {span}, or one for all channels: pixels are in [0, 1]"


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in "aeiou" else "a"
