"""Default folders in which a named data set is looked for."""

from __future__ import annotations

import os
from pathlib import Path

from starfire_cli.data import user_paths
from starfire_cli.errors import StarfireError


def find_folder(name: str, path: Path | None, content: str) -> Path:
    """`path`, else STARFIRE_DATA/NAME, else datasets/NAME. Raises StarfireError that says what to put there."""
    if path is not None:
        return path
    root = user_paths.expanded(
        os.environ.get("STARFIRE_DATA") or "datasets", f"STARFIRE_DATA={os.environ.get('STARFIRE_DATA')}"
    )
    if (root / name).is_dir():
        return root / name
    raise StarfireError(
        f"--data {name}: there is no {root / name}; nothing is downloaded: put {content} into it, "
        f"or say where it lies: --data {name}:PATH"
    )
