"""Images in tar shards, on a disk or behind URLs: sets of `starfire data pack`, and other WebDatasets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starfire_cli.data.sets import SETS
from starfire_cli.data.shards import index, remote, tarset
from starfire_cli.data.source import Source
from starfire_cli.errors import BadOption


@SETS.register("webdataset")
@dataclass(frozen=True)
class WebDataset:
    """A folder of tar files, with or without our index."""

    def recognises(self, path: Path) -> bool:
        """Whether the folder has our index, or tar files and no folders."""
        return index.is_packed(path) or (path.is_dir() and tarset.only_tars(path))

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """The set at a folder. Raises StarfireError where no shard is there, or one is not what the index says."""
        if path is None:
            raise BadOption("--data webdataset: say which: --data webdataset:FOLDER or webdataset:URL")
        if index.is_packed(path):
            return index.source(path, index.index_of(path))
        return tarset.source(path)

    def read_urls(self, text: str) -> Source:
        """The set behind a URL: a folder with our index, or shards as `URL-{000..146}.tar`, several joined by `::`.

        Raises:
            BadOption, StarfireError: not a URL, nothing there, or nothing that can be read.
        """
        if text.endswith(".tar"):
            return tarset.source_of_urls(text)
        base = remote.check_url(text.removesuffix(f"/{index.INDEX}").rstrip("/"))
        return index.source(base, index.index_of(base))

    def described(self, where: Path | str) -> tuple[str, int | None]:
        """Name and longer side of a packed set; unknown for tar files of others before they are read."""
        if isinstance(where, str) and not where.endswith(".tar"):
            base = remote.check_url(where.removesuffix(f"/{index.INDEX}").rstrip("/"))
            found = index.index_of(base)
            return found.name, found.side
        if isinstance(where, Path) and index.is_packed(where):
            found = index.index_of(where)
            return found.name, found.side
        return "webdataset", None
