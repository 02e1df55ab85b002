"""Errors in the words of Python: options of the command line become arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from starfire_cli.errors import StarfireError, for_python

# `--target 0.9 is more ...`: an option with a value is followed by a number, a quoted text or the name of something.
_OPTION = re.compile(r"--([a-z][a-z-]*)(?: ('[^']*'|[-+.\d][^\s,;]*|[A-Za-z][\w:=./*-]*(?=[ :,;]|$)))?")
_VALUED = {
    "target",
    "method",
    "fc",
    "only",
    "keep-dense",
    "ramp",
    "mask-every",
    "kernels",
    "seed",
    "eps",
    "values",
    "to",
}
_VALUED |= {"data", "model", "weights", "images", "batch-size", "effort", "device", "table", "kind", "norm", "steps"}
_NO_VALUE = {"is", "and", "or", "both", "are", "for", "gives", "says", "leaves", "takes", "needs", "reads", "belongs"}


@contextmanager
def python_errors() -> Iterator[None]:
    """Within it, a StarfireError names arguments (`target=0.9`) where it would name options (`--target 0.9`)."""
    try:
        with for_python():
            yield
    except StarfireError as error:
        raise type(error)(in_python(str(error))).with_traceback(error.__traceback__) from None


def in_python(text: str) -> str:
    """A message of the command line in the words of Python."""
    return _OPTION.sub(_argument, text)


def _argument(found: re.Match[str]) -> str:
    name, value = found[1].replace("-", "_"), found[2]
    if value is None:
        return name
    if found[1] not in _VALUED or value in _NO_VALUE:
        return f"{name} {value}"
    colon = ":" if value.endswith(":") else ""
    bare = value.removesuffix(":")
    quoted = bare if bare.startswith("'") or re.fullmatch(r"[-+.\d]\S*", bare) else repr(bare)
    return f"{name}={quoted}{colon}"
