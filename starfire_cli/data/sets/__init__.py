"""Registry of data sets: one file each, with how it is recognised on disk and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from starfire_cli.data.source import Source
from starfire_cli.registry import Family


class DataSet(Protocol):
    """What every set can do."""

    def recognises(self, path: Path) -> bool:
        """Whether the folder looks like this set. Looks at names only."""

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """The set at `path` (None: it was not given), listed but not decoded.

        `image_size` matters only to a set whose images have no natural size. Raises StarfireError that says what was
        seen and what works.
        """


SETS: Family[DataSet] = Family("data set", "starfire_cli.data.sets")
