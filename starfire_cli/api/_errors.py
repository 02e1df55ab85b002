"""Errors, notes and warnings in the words of Python: options of the command line become arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from starfire_cli.errors import StarfireError, for_python

# `--target 0.9 is more ...`: an option with a value is followed by a number, a quoted text or the name of something.
_OPTION = re.compile(r"--([a-z][a-z-]*)(?: ('[^']*'|[-+.\d/][^\s,;]*|[A-Za-z][\w:=./*-]*(?=[ :,;)]|$)))?")
_VALUED = {
    *("target", "method", "fc", "only", "keep-dense", "ramp", "mask-every", "max-nonzero", "kernels", "seed"),
    *("eps", "norm", "steps", "step-size", "restarts", "values", "effort", "masks", "images", "to", "out", "input"),
    *("data", "model", "weights", "num-classes", "batch-size", "device", "table", "kind", "layer", "x", "width"),
}
_NO_VALUE = {"is", "and", "or", "both", "are", "for", "gives", "says", "leaves", "takes", "needs", "reads", "belongs"}
_NO_VALUE |= {"does", "names", "another"}


@contextmanager
def python_errors(**renamed: str) -> Iterator[None]:
    """Within it, a StarfireError names arguments (`target=0.9`) where it would name options (`--target 0.9`).

    Args:
        renamed: arguments by the options that have other names, as `out="path"`.
    """
    try:
        with for_python():
            yield
    except StarfireError as error:
        raise type(error)(in_python(str(error), renamed)).with_traceback(error.__traceback__) from None


def in_python(text: str, renamed: Mapping[str, str] | None = None) -> str:
    """A message of the command line in the words of Python."""
    return _OPTION.sub(partial(_argument, renamed or {}), text)


def _argument(renamed: Mapping[str, str], found: re.Match[str]) -> str:
    name, value = found[1].replace("-", "_"), found[2]
    name = renamed.get(name, name)
    if value is None:
        return name
    if found[1] not in _VALUED or value in _NO_VALUE:
        return f"{name} {value}"
    end = value[-1] if value[-1] in ":)" else ""
    bare = value.removesuffix(end) if end else value
    quoted = bare if bare.startswith("'") or re.fullmatch(r"[-+.]?\d[-+.\w]*", bare) else repr(bare)
    return f"{name}={quoted}{end}"
