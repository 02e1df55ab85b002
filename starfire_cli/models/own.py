"""Networks of the user as `package.module:callable`, called with `num_classes=...`."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType

from torch import nn

from starfire_cli.errors import BadOption


def build(spec: str, *, num_classes: int, image_size: int | None) -> nn.Module:
    """The model that the callable returns. Raises BadOption saying which part of the spec is wrong."""
    module_name, _, path = spec.partition(":")
    module = _import(spec, module_name)
    target: object = module
    for part in path.split("."):
        if not hasattr(target, part):
            public = [n for n, v in vars(target).items() if callable(v) and not n.startswith("_")]
            there = ", ".join(public[:8]) or "nothing callable"
            raise BadOption(f"model {spec!r}: {module_name} has no {path!r}; it has {there}")
        target = getattr(target, part)
    if not callable(target):
        raise BadOption(f"model {spec!r}: {path} is a {type(target).__name__}, not a class or function")
    try:
        model = target(num_classes=num_classes)
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        raise BadOption(f"model {spec!r}: {path}(num_classes={num_classes}) failed with {_one_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise BadOption(f"model {spec!r}: {path} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _import(spec: str, name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise BadOption(
                f"model {spec!r}: there is no module {error.name!r}; the current folder and installed packages count"
            ) from None
        raise BadOption(f"model {spec!r}: importing {name} failed with {_one_line(error)}") from None
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        raise BadOption(f"model {spec!r}: importing {name} failed with {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
