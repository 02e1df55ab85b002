"""Types of arguments from Python, checked by the annotations of the function that takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from os import PathLike
from typing import Any

from starfire_cli.errors import BadOption


def _texts(given: object) -> bool:
    return isinstance(given, Collection) and not isinstance(given, str) and all(isinstance(x, str) for x in given)


def _numbers_by_name(given: object) -> bool:
    return isinstance(given, Mapping) and all(
        isinstance(name, str) and (isinstance(value, Real) or getattr(value, "ndim", None) == 0)
        for name, value in given.items()
    )


# By annotation: whether a value is of it, and what works in words. Others, as nn.Module, are checked where they go.
_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "str": (lambda x: isinstance(x, str), "a text"),
    "bool": (lambda x: isinstance(x, bool), "True or False"),
    "int": (lambda x: isinstance(x, Integral) and not isinstance(x, bool), "a whole number"),
    "float": (lambda x: isinstance(x, Real) and not isinstance(x, bool), "a number"),
    "Sequence[str]": (_texts, "a list of texts"),
    "Mapping[str, float]": (_numbers_by_name, "a dict of numbers by name"),
    "Mapping[str, Tensor]": (lambda x: isinstance(x, Mapping), "masks by state-dict key"),
    "PathLike[str]": (lambda x: isinstance(x, PathLike), "a path"),
    "None": (lambda x: x is None, ""),
}
_EXAMPLES = {"target": "0.8", "method": "'ck'", "fc": "'fine'", "ramp": "'linear'", "model": "'resnet50'"}
_BETWEEN = re.compile(r" \| (?![^\[]*\])")  # of a union, but for those within brackets
_SHOWN = 60  # characters of a value in a message


def check_arguments(function: Callable[..., Any], given: Mapping[str, object]) -> None:
    """Check the arguments of a call by the function's annotations; call it first, with `locals()`.

    Raises BadOption for a value of another type than an annotation of plain ones allows.
    """
    for name, annotation in function.__annotations__.items():
        kinds = [_KINDS.get(part) for part in _BETWEEN.split(str(annotation))]
        known = [kind for kind in kinds if kind is not None]
        if name not in given or len(known) < len(kinds) or any(fits(given[name]) for fits, _ in known):
            continue
        works = list(dict.fromkeys(words for _, words in known if words))
        example = f", such as {_EXAMPLES[name]}" if name in _EXAMPLES else ""
        verb = "works" if len(works) == 1 else "work"
        raise BadOption(f"{shown(name, given[name])}; {' or '.join(works)} {verb}{example}")


def shown(name: str, given: object) -> str:
    """An argument with its value, where that is short, and its type."""
    text, kind = repr(given), type(given).__name__
    value = f"={text}" if len(text) <= _SHOWN and "\n" not in text and text.isprintable() else ""
    return f"{name}{value} is {'an' if kind[:1].lower() in 'aeio' else 'a'} {kind}"
