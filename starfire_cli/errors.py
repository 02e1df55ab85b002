"""Errors shown to users: one line that repeats what was given and says what works."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches


class StarfireError(Exception):
    """A user's problem, not ours: `cli.py` prints its text as one line and exits with 1."""

    agreed = False
    """Whether all ranks raise it alike, so that one needs to say it."""


class BadOption(StarfireError):
    """An option or argument cannot mean anything: as `StarfireError`, but the exit code is 2."""


class Mismatch(StarfireError):
    """A file contradicts itself (masks against zeros, digest against masks) and the user asked to be strict."""


class LostRank(StarfireError):
    """Another process of the job has ended, so this one cannot go on; that process tells the cause."""


def unknown(noun: str, given: str, known: Iterable[str]) -> BadOption:
    """The error for a name nobody registered: repeats it, lists what exists, guesses what was meant."""
    names = sorted(known)
    # Letters in another order are too far apart for short names, so that "kc" would not be "ck".
    close = [name for name in names if sorted(name) == sorted(given.lower())] or get_close_matches(
        given.lower(), names, n=1
    )
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return BadOption(f"unknown {noun} {given!r}; there are: {', '.join(names)}.{hint}")


_in_python: ContextVar[bool] = ContextVar("in_python", default=False)


@contextmanager
def for_python() -> Iterator[None]:
    """Within it, `option` names arguments of the Python interface instead of options of the command line."""
    token = _in_python.set(True)
    try:
        yield
    finally:
        _in_python.reset(token)


def option(name: str, value: object = None, *, quoted: bool = False) -> str:
    """The name of an option with `value`, or with any value if None: `--num-classes 5`, or `num_classes=5` in Python.

    With `quoted` the value stands in quotes, as where it is what was given.
    """
    if _in_python.get():
        return f"{name}={'...' if value is None else repr(value)}"
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"--{name.replace('_', '-')}" + (
        "" if value is None else f" {text!r}" if quoted else f" {shlex.quote(text)}"
    )
