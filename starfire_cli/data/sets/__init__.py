"""Registry of data sets: one file each, with how it is recognised on disk and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from starfire_cli.data.source import Source
from starfire_cli.registry import Family


class DataSet(Protocol):
    """The interface of data sets."""

    def recognises(self, path: Path) -> bool:
        """Whether the folder has this set's layout, judged by names only."""

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """The set at `path` (None: the default folder), listed but not decoded.

        `image_size` matters only to a set whose images have no natural size. Raises StarfireError that says what was
        seen and what works.
        """


SETS: Family[DataSet] = Family("data set", "starfire_cli.data.sets")
