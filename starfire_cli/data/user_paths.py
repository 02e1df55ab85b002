"""Paths that users give, with `~` resolved."""

from __future__ import annotations

from pathlib import Path

from starfire_cli.errors import BadOption


def expanded(text: str, given: str) -> Path:
    """`text` as a path, its `~` or `~user` resolved.

    Args:
        text: the path.
        given: how the user gave it, repeated in the error (`--data ~nobody/images`).

    Raises BadOption where it names the home of a user who is not there.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise BadOption(f"{given}: there is no home folder {Path(text).parts[0]}; give a full path") from None
