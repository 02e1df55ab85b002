"""Options, each declared once: a field of a request carries its flags, help, range and choices.

`commands.command` makes the command line and `--help` from the declarations, `docs/generate_cli.py` docs/cli.md, and
`check` the errors, the same for callers in Python.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from starfire_cli.errors import BadOption, unknown
from starfire_cli.numbers import LARGEST, LARGEST_WHOLE

BELOW_1 = math.nextafter(1, 0)
ABOVE_0 = math.nextafter(0, 1)

_OPTION, _PART = "option", "part"  # keys of a field's metadata


@dataclass(frozen=True, kw_only=True)
class Option:
    """The declaration of one option, whichever requests have it.

    Args:
        help: the sentence in `--help`; `{choices}` and `{range}` in it stand for those.
        flags: as typer takes them, `("--seed",)`; empty for the field's name as a flag.
        short: one letter, as in `-b`.
        argument: whether it is given by its place and has no flag.
        panel: the group of options in `--help`.
        metavar: what stands for the value in `--help`.
        low: the least number.
        high: the largest number.
        range: both in words, for the error.
        choices: the words that can be given.
        specs: whether a word may have options behind a colon, which are checked elsewhere.
        parse: (flag, text) to the field's value; raises BadOption. None: typer converts to the field's type.
        bare: the value that the flag alone means, of an option whose value may be left out.
        stored: whether the value is part of a run's config.json; "changed" for where it is not the default.
    """

    help: str
    flags: tuple[str, ...] = ()
    short: str = ""
    argument: bool = False
    panel: str | None = None
    metavar: str | None = None
    low: float | None = None
    high: float | None = None
    range: str = ""
    choices: tuple[str, ...] = ()
    specs: bool = False
    parse: Callable[[str, str], Any] | None = None
    bare: str | None = None
    stored: Literal["always", "changed", "never"] = "always"

    def default(self, value: Any) -> Any:
        """A dataclass field with this option and the default `value`."""
        return dataclasses.field(default=value, metadata={_OPTION: self})

    def required(self) -> Any:
        """A dataclass field with this option and no default."""
        return dataclasses.field(metadata={_OPTION: self})

    def help_text(self) -> str:
        """The help with its choices and range."""
        *first, last = self.choices or ("",)
        return self.help.format(choices=f"{', '.join(first)} or {last}" if first else last, range=self.range)

    def flag(self, name: str) -> str:
        """The name in errors of the option of the field `name`: `--lr-drops`, or `OUT` for an argument."""
        if self.argument:
            return (self.metavar or name.upper()).strip("[]")
        return self.flags[0].partition("/")[0] if self.flags else f"--{name.replace('_', '-')}"


def option(default: Any, help: str, **settings: Any) -> Any:
    """A field with an option of its own; `settings` are what `Option` takes."""
    return Option(help=help, **settings).default(default)


def part(request: type[Any]) -> Any:
    """A field that holds another request, whose options are offered as well."""
    return dataclasses.field(default_factory=request, metadata={_PART: request})


def nested(field: dataclasses.Field[Any]) -> type[Any] | None:
    """The request that a field made by `part` holds."""
    found: type[Any] | None = field.metadata.get(_PART)
    return found


def declared(request: type[Any]) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """(field, option) of a request's own fields that are options, in order."""
    for field in dataclasses.fields(request):
        if (found := field.metadata.get(_OPTION)) is not None:
            yield field, found


def option_of(request: type[Any], name: str) -> Option:
    """The option of the field `name`."""
    return next(found for field, found in declared(request) if field.name == name)


def check(request: Any) -> None:
    """Raises BadOption for the first value out of its range, or that is none of its choices."""
    for field in dataclasses.fields(request):
        if nested(field) is not None:
            check(getattr(request, field.name))
    for field, found in declared(type(request)):
        value = getattr(request, field.name)
        flag = found.flag(field.name)
        if found.choices and value is not None:
            word = str(value).partition(":")[0] if found.specs else value
            if word not in found.choices:
                raise unknown(flag, str(value), found.choices)
        if (found.low is None and found.high is None) or value is None:
            continue
        if not isinstance(value, int | float):  # from Python; the command line has converted it
            raise BadOption(f"{flag} {value!r} is a {type(value).__name__}; {found.range} works")
        most = LARGEST_WHOLE if isinstance(value, int) else LARGEST
        low, high = -most if found.low is None else found.low, most if found.high is None else found.high
        if not low <= value <= high:
            raise out_of_range(type(request), field.name, value)


def out_of_range(request: type[Any], name: str, value: float) -> BadOption:
    """The error for a number that the field `name` cannot have."""
    found = option_of(request, name)
    shown = str(value) if isinstance(value, int) else f"{value:g}"
    return BadOption(f"{found.flag(name)} {shown} is out of range: {found.range}")
