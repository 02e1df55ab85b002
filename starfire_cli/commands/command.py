"""Makes the functions behind the commands, with the signatures that typer reads, from requests."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from starfire_cli.options import Option, check, declared, nested


def command(*requests: type[Any], given: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a function of requests, so that typer offers an option for each of their fields.

    Each request is filled, checked (`options.check`) and handed over; its field `command`, if it has one, is the
    command line.

    Args:
        requests: dataclasses whose fields are made by `options.option`; the function takes one of each.
        given: whether the function also takes `given`, the names of the first request's fields that the user gave.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, **values: Any) -> None:
            filled = [_fill(request, values) for request in requests]
            for request in filled:
                check(request)
            first = {field.name for field in dataclasses.fields(requests[0])}
            named = {"given": frozenset(n for n in values if n in first and _was_given(context, n))} if given else {}
            function(*filled, **named)

        shown = [_parameter(*found) for request in requests for found in _options(request)]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        run.__signature__ = inspect.Signature([context, *shown])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (context, *shown)}
        run.__name__, run.__doc__, run.__module__ = function.__name__, function.__doc__, function.__module__
        bare = dict(found for request in requests for found in _bare_values(request))
        run.bare_values = bare  # type: ignore[attr-defined]
        run.requests = requests  # type: ignore[attr-defined]
        return run

    return decorate


def _options(request: type[Any]) -> Iterator[tuple[dataclasses.Field[Any], Option, Any]]:
    """(field, option, type) of every option of a request, and of the requests that it holds."""
    hints = typing.get_type_hints(request)
    options = {field.name: option for field, option in declared(request)}
    for field in dataclasses.fields(request):
        if (inner := nested(field)) is not None:
            yield from _options(inner)
        elif field.name in options:
            yield field, options[field.name], hints[field.name]


def _bare_values(request: type[Any]) -> Iterator[tuple[str, str]]:
    """(flag, the value that it means alone) of options whose value may be left out."""
    for field, option, _ in _options(request):
        if option.bare is not None:
            yield option.flag(field.name), option.bare


def _parameter(field: dataclasses.Field[Any], option: Option, kind: Any) -> inspect.Parameter:
    """One parameter as typer reads it."""
    default: Any = field.default
    if typing.get_origin(kind) is tuple and option.parse is None:
        kind, default = list[typing.get_args(kind)[0]] | None, default or None  # type: ignore[misc]
    elif option.parse is not None:
        kind = str if default not in (None, dataclasses.MISSING) else str | None
        default = ",".join(f"{number:g}" for number in default) if isinstance(default, tuple) else default
    common: dict[str, Any] = {
        "help": option.help_text(),
        "metavar": option.metavar,
        "rich_help_panel": option.panel,
        "show_default": default is not None and default is not False,
    }
    info: Any
    if option.argument:
        info = typer.Argument(**common)
    else:
        flags = option.flags or (option.flag(field.name),)
        info = typer.Option(*flags, *filter(None, [option.short]), **common)
    annotation = Annotated[kind, info]
    empty = inspect.Parameter.empty
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=empty if default is dataclasses.MISSING else default,
        annotation=annotation,
    )


def _fill(request: type[Any], values: dict[str, Any]) -> Any:
    """A request from the values as typer read them. Raises BadOption."""
    found: dict[str, Any] = {}
    options = {field.name: option for field, option in declared(request)}
    for field in dataclasses.fields(request):
        if (inner := nested(field)) is not None:
            found[field.name] = _fill(inner, values)
        elif field.name in options:
            found[field.name] = _value(options[field.name], field, values[field.name])
        elif field.name == "command":
            found[field.name] = shlex.join(["starfire", *sys.argv[1:]])
    return request(**found)


def _value(option: Option, field: dataclasses.Field[Any], value: Any) -> Any:
    if option.parse is not None and value is not None:
        return option.parse(option.flag(field.name), value)
    if isinstance(value, list) or (value is None and field.default == ()):
        return tuple(value or ())
    return value


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
