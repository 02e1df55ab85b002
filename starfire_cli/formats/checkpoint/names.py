"""Gives files whose names are not UTF-8 to libraries that take no other names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def utf8_name(path: Path) -> Iterator[Path]:
    """`path` itself, or within the block a link to it; files mapped by that name stay mapped."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="starfire-") as folder:
            link = Path(folder) / "file"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path
