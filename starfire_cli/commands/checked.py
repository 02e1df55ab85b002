"""The command class: refuses empty values and numbers that no option can take. Ranges: `options.check`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from starfire_cli.errors import BadOption
from starfire_cli.numbers import check_value


class CheckedCommand(TyperCommand):
    """A command that takes no empty text, and no number that cannot be computed with."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's own. Raises BadOption that repeats the value."""
        args = self._with_bare_values(args)
        # As they were typed: an empty path has become the current folder by the time that it is a Path.
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.params:
            name = param.opts[0] if param.opts[0].startswith("-") else str(param.name).upper()
            for text in _each(given.get(str(param.name))):
                if isinstance(text, str) and not text.strip():
                    wanted = getattr(param, "metavar", None) if name.startswith("-") else None
                    raise BadOption(f"{name} {text!r} is empty; leave it out, or give {wanted or 'it a value'}")
        try:
            rest = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            text = given.get(str(getattr(error.param, "name", None)))
            if isinstance(text, str) and text not in error.message:
                error.message = f"{text!r}: {error.message}"
            raise
        for param in self.params:
            name = param.opts[0] if param.opts else str(param.name)
            for value in _each(ctx.params.get(str(param.name))):
                check_value(name, value)
        return rest

    def _with_bare_values(self, args: list[str]) -> list[str]:
        """The arguments, with its value after each flag that stands without one and may."""
        bare = getattr(self.callback, "bare_values", {})
        if not bare:
            return args
        found: list[str] = []
        for word, following in zip(args, [*args[1:], None], strict=False):
            found.append(word)
            if word in bare and (following is None or following.startswith("-")):
                found.append(bare[word])
        return found


def _each(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        yield from value
    else:
        yield value
