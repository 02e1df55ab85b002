"""Where commands print: a terminal is used as it is, a pipe gets plain lines that are never wrapped."""

from __future__ import annotations

from rich.console import Console

# No line of ours is longer; rich pads nothing up to it.
_PIPE_WIDTH = 400


def open_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH, soft_wrap=True)
    return console
