"""Reads pickles that name foreign classes without importing them: inert stand-ins take the classes' places.

`weights_only` loading refuses every name it does not know. Where such a name only says what kind of object follows (a
`Namespace` of options, a whole pickled model), a stand-in that merely keeps the object's state lets the weights in it
be read though the code that made it is lost. A pickle that wants to *call* something is refused all the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from starfire_cli.damage import Damaged

# Called while unpickling by what is only data. Even so nothing of these is run: the value becomes a stand-in.
_DATA = {
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.numeric._frombuffer",
    "numpy.core.numeric._frombuffer",
    "numpy.dtype",
    "numpy.random._pickle.__randomstate_ctor",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "datetime.timezone",
    "collections.deque",
    "functools.partial",
    "builtins.slice",
    "builtins.range",
    "builtins.frozenset",
    "uuid.UUID",
}


_FILLED = "collections.defaultdict"
_MOST_MODULES = 100_000  # names of modules in one file: more than any model has


class Called(Exception):
    """Raised where a pickle calls something; its text is the name."""


class Inert:
    """Stand-in for an object of a foreign class: the pickled state, without behaviour."""

    name = ""
    state: Any = None

    def __new__(cls, *_: Any) -> Inert:
        """Ignores the arguments."""
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        # A pickled object is made by __new__ alone; only a call (opcode REDUCE) comes through here.
        if self.name not in _DATA:
            raise Called(self.name)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def is_data(name: str) -> bool:
    """Whether a call of the foreign `name` only makes data."""
    return name in _DATA or name == _FILLED


def stand_in(name: str) -> Callable[..., Any]:
    """The stand-in for the foreign class `name`; a plain dict for a defaultdict."""
    return _empty_dict if name == _FILLED else type("Inert", (Inert,), {"name": name})


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def is_module(value: Any) -> bool:
    """Whether `value` stands in for a pickled `torch.nn.Module`, or is a dict of modules' attributes by name.

    The latter is how torch-pruning saves a network: `{"": {"_parameters": ...}, "conv1": {"_parameters": ...}, ...}`.
    """
    if isinstance(value, dict):
        return isinstance(value.get(""), dict) and "_parameters" in value[""]
    return isinstance(value, Inert) and isinstance(value.state, dict) and "_modules" in value.state


def module_state(module: Any) -> dict[str, Tensor]:
    """The state dict of a pickled module (see `is_module`), in its own order and with its own key names."""
    if isinstance(module, dict):
        parts = ((name, part) for name, part in module.items() if isinstance(name, str) and isinstance(part, dict))
        return {key: value for name, part in parts for key, value in _own(part, f"{name}." if name else "")}
    return dict(_walk(module, "", frozenset(), itertools.count()))


def _walk(module: Any, prefix: str, above: frozenset[int], visits: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    """A module and its submodules; one that occurs twice comes under each name, as in torch.

    So few modules may be had under names without number: raises Damaged where these get too many.
    """
    if not is_module(module) or id(module) in above or len(above) > 100:
        return
    if next(visits) > _MOST_MODULES:
        raise Damaged(f"its modules hold one another under more than {_MOST_MODULES} names")
    state = module.state
    yield from _own(state, prefix)
    children = state["_modules"]
    for key, child in children.items() if isinstance(children, dict) else ():
        yield from _walk(child, f"{prefix}{key}.", above | {id(module)}, visits)


def _own(state: dict[str, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The parameters and persistent buffers of one module's attributes."""
    passing = state.get("_non_persistent_buffers_set")
    for part in ("_parameters", "_buffers"):
        tensors = state.get(part)
        for key, value in tensors.items() if isinstance(tensors, dict) else ():
            skipped = part == "_buffers" and isinstance(passing, set) and key in passing
            if isinstance(value, Tensor) and not skipped:
                yield f"{prefix}{key}", value
