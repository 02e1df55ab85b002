r"""The console: styled text on a terminal, plain unwrapped lines in a pipe.

Names come from files, and may hold what a terminal takes for a command: escape codes, line ends, bells. Whatever is
printed here shows them as `\x1b` and the like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from starfire_cli.text import escaped

# No line of ours is longer; rich pads nothing up to it.
_PIPE_WIDTH = 400
# Of what is laid out already, as tables are: everything a terminal may act on but the line ends between rows.
_ACTED_ON = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class SafeConsole(Console):
    """A console that never interprets text: one `str` is one line, and no name is taken for markup or an emoji."""

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich's; a line end in a `str` is escaped."""
        super().print(*(escaped(item) if isinstance(item, str) else item for item in objects), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's, with control characters escaped; rich's own control codes pass."""
        for segment in super().render(renderable, options):
            if segment.control is None and _ACTED_ON.search(segment.text):
                yield Segment(_ACTED_ON.sub(lambda found: escaped(found[0]), segment.text), segment.style)
            else:
                yield segment


def open_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr."""
    console = SafeConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = SafeConsole(
            stderr=stderr, highlight=False, markup=False, emoji=False, width=_PIPE_WIDTH, soft_wrap=True
        )
    return console


def say(text: str, *, err: bool = False) -> None:
    """Prints one unwrapped line, with control characters escaped."""
    typer.echo(escaped(text), err=err)
