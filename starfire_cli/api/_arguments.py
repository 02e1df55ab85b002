"""Arguments that several functions of the Python interface take, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from starfire_cli.errors import BadOption
from starfire_cli.values import Channels

AnyPath = str | PathLike[str]
SAVED = "; starfire.save(path, pruner) writes a file"


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Mean and std of pixels in [0, 1], per channel; None where nothing is said."""

    mean: Channels | None = None
    std: Channels | None = None

    @classmethod
    def given(cls, mean: object, std: object) -> Normalisation:
        """Both as triples. Raises BadOption for what pixels in [0, 1] cannot have."""
        return cls(mean=_channels("mean", mean, 0.0), std=_channels("std", std, 1e-6))


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
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise BadOption(f"{name}={given!r} is no whole number of 1 or more")
    return given


def model_spec(given: object) -> str | None:
    """The name of a network, or None. Raises BadOption for anything else."""
    if given is not None and not isinstance(given, str):
        raise BadOption(f"model is a {type(given).__name__}; its name works, such as model='resnet50'")
    return given


def _channels(name: str, given: object, least: float) -> Channels | None:
    if given is None:
        return None
    numbers = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(numbers) != 3 or not all(isinstance(x, int | float) and least <= x <= 1 for x in numbers):
        span = "above 0 and up to 1" if least else "from 0 to 1"
        raise BadOption(f"{name}={given!r} is not three numbers {span}: pixels are in [0, 1]")
    red, green, blue = numbers
    return float(red), float(green), float(blue)


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in "aeiou" else "a"
