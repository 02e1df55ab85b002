"""Registries: turn a name on the command line into an object, `window:max_nonzero=2` into a frozen dataclass, and back.

A family is a folder with one file a member: `names()` reads the folder and imports nothing, so that `--help` stays
fast; `build()` imports the one file it needs. A member's options are its dataclass fields. A member may be registered
for uses, as in `@METHODS.register("dense", "conv", "linear")`; `taking("linear")` is the family of those.
"""

from __future__ import annotations

import ast
import dataclasses
import pkgutil
import re
import types
import typing
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar, Union

from starfire_cli.errors import BadOption, unknown
from starfire_cli.numbers import parse_number, parse_whole

T = TypeVar("T")


class Family(Generic[T]):
    """One folder of interchangeable things: methods, attacks, encodings.

    Args:
        noun: what a member is called in messages ("pruning method").
        package: dotted name of the folder; each file in it whose name has no leading underscore is a member,
            called like the file with `-` in place of `_`.
    """

    def __init__(self, noun: str, package: str) -> None:
        self.noun = noun
        self.package = package
        self._members: dict[str, type[T]] = {}
        self._taking: frozenset[str] = frozenset()

    def taking(self, *uses: str, noun: str | None = None) -> Family[T]:
        """The members that are registered for one of the `uses`; `noun` is what one is called in messages."""
        part: Family[T] = Family(noun or self.noun, self.package)
        part._members, part._taking = self._members, frozenset(uses)
        return part

    def names(self) -> list[str]:
        """The members' names, sorted; read from the folder, nothing is imported."""
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        stems = _stems(folder)
        if self._taking:
            stems = tuple(stem for stem in stems if self._taking & _uses(folder / f"{stem}.py"))
        return sorted(stem.replace("_", "-") for stem in stems)

    def register(self, name: str, *uses: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: `@FAMILY.register("window", "conv")` above a frozen dataclass.

        Args:
            name: the member's.
            uses: what it can be used for, as literals: `taking` reads them from the file.
        """

        def add(cls: type[T]) -> type[T]:
            assert dataclasses.is_dataclass(cls), f"{cls} must be a frozen dataclass"
            self._members[name] = cls
            return cls

        return add

    def member(self, name: str) -> type[T]:
        """The class called `name`. Raises BadOption that lists the names there are."""
        if name not in self.names():
            raise unknown(self.noun, name, self.names())
        import_module(f"{self.package}.{name.replace('-', '_')}")
        return self._members[name]

    def build(self, text: str) -> T:
        """`name` or `name:option=value,option=value` to an object. Raises BadOption."""
        name, _, options = text.partition(":")
        return built(self.member(name.strip()), options, f"{self.noun} {text!r}", name)

    def spec(self, member: T) -> str:
        """The text that builds `member` again: its name and the options that differ from their defaults."""
        name = next(n for n, cls in self._members.items() if cls is type(member))
        options = spec_options(member)
        return f"{name}:{options}" if options else name


def built(cls: type[T], options: str, what: str, name: str) -> T:
    """`option=value,option=value` to an object of the frozen dataclass `cls`.

    Args:
        cls: whose fields are the options.
        options: the text; "" for all defaults.
        what: what was given, as errors begin.
        name: of what has the options, for errors.

    Raises BadOption.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in options.split(","))):
        key, sep, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if key not in fields or not sep:
            options_text = ", ".join(f"{k}=..." for k in fields) or "none"
            raise BadOption(f"{what}: {part!r} is not an option of {name}; options: {options_text}")
        given[key] = parse_value(value.strip(), fields[key], f"{what}: {key}")
    try:
        return cls(**given)
    except BadOption as error:
        raise BadOption(f"{what}: {error}") from None


def spec_options(member: Any, *always: str) -> str:
    """The text from which `built` makes `member` again: options that differ from their defaults, and those `always`."""
    return ",".join(
        f"{f.name}={_show(getattr(member, f.name))}"
        for f in dataclasses.fields(member)
        if f.init and (f.name in always or getattr(member, f.name) != f.default)
    )


def given_options(spec: str) -> list[str]:
    """The names of the options that are written out in `name:option=value,...`."""
    parts = spec.partition(":")[2].split(",")
    return [part.partition("=")[0].strip().replace("-", "_") for part in parts if part.strip()]


@cache
def _stems(folder: Path) -> tuple[str, ...]:
    """The files of the members, without their endings."""
    found = pkgutil.iter_modules([str(folder)])
    return tuple(m.name for m in found if not m.ispkg and not m.name.startswith("_"))


@cache
def _uses(path: Path) -> frozenset[str]:
    """The uses that a member's file registers it for, read from its source."""
    found = re.search(r"^@\w+\.register\(([^)]*)\)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(ast.literal_eval(f"({found[1].strip().rstrip(',')},)")[1:]) if found else frozenset()


def parse_value(text: str, kind: Any, what: str) -> Any:
    """`text` as the annotated type `kind` (bool, int, float, str, or one of these `| None`)."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        if text.lower() in ("none", ""):
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return parse_number(text) if kind is float else parse_whole(text) if kind is int else kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
        raise BadOption(f"{what}={text!r} is not {wanted}") from None


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
