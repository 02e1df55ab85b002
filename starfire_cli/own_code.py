"""Finds code of the user by name: `package.module:callable`, importable from the current folder as well."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from starfire_cli.errors import BadOption

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def names_code(spec: str) -> bool:
    """Whether `spec` has the form of `package.module:callable`."""
    return _NAME.fullmatch(spec) is not None


def find_callable(spec: str, noun: str) -> Callable[..., Any]:
    """The class or function that `spec` names.

    Args:
        spec: `package.module:callable`; `module:Outer.inner` works, too.
        noun: what it is to give, for errors.

    Raises BadOption saying which part of the spec is wrong.
    """
    module_name, _, path = spec.partition(":")
    module = _import(spec, module_name, noun)
    target: object = module
    for part in path.split("."):
        if not hasattr(target, part):
            public = [n for n, v in vars(target).items() if callable(v) and not n.startswith("_")]
            there = ", ".join(public[:8]) or "nothing callable"
            raise BadOption(f"{noun} {spec!r}: {module_name} has no {path!r}; it has {there}")
        target = getattr(target, part)
    if not callable(target):
        raise BadOption(f"{noun} {spec!r}: {path} is a {type(target).__name__}, not a class or function")
    return target


def called(spec: str, noun: str, /, **arguments: object) -> Any:
    """Call what `spec` names with `arguments`, and return what it returns. Raises BadOption."""
    target, path = find_callable(spec, noun), spec.partition(":")[2]
    try:
        return target(**arguments)
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise BadOption(f"{noun} {spec!r}: {path}({given}) failed with {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """An error of the user's code in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _import(spec: str, name: str, noun: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise BadOption(
                f"{noun} {spec!r}: there is no module {error.name!r}; the current folder and installed packages count"
            ) from None
        raise BadOption(f"{noun} {spec!r}: importing {name} failed with {one_line(error)}") from None
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        raise BadOption(f"{noun} {spec!r}: importing {name} failed with {one_line(error)}") from None
