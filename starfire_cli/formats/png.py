"""Writes PNG files atomically."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from starfire_cli.errors import StarfireError
from starfire_cli.formats.atomic import atomic_write, disk_problem


def check_folder(folder: Path) -> None:
    """Makes `folder` if it is not there. Raises StarfireError where it is not writable."""
    if folder.exists() and not folder.is_dir():
        raise StarfireError(f"{folder} is a file; give a folder for the pictures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise disk_problem(error, folder) or StarfireError(f"cannot make {folder}: {error}") from None


def write_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write (height, width, 3) as 8-bit RGB. Raises StarfireError where the disk refuses."""
    from PIL import Image

    memory = io.BytesIO()
    Image.fromarray(picture).save(memory, format="PNG")
    with atomic_write(path, need=memory.tell()) as file:
        file.write(memory.getvalue())
