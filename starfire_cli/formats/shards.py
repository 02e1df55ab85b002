"""Writes tar shards: atomically, reproducibly to the byte, and with a checksum.

Plain ustar, one member an image and one for its class number, so that tar, webdataset and others read it.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from starfire_cli.formats.atomic import atomic_write


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a shard: `KEY.ENDING` with the image's bytes, `KEY.cls` with the class number as text."""

    key: int
    ending: str
    content: bytes
    label: int


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A shard on the disk: its size, its SHA-256 in hex, and offset, size, label and key of each image in it."""

    bytes: int
    sha256: str
    members: list[tuple[int, int, int, int]]


def write_shard(path: Path, samples: Iterable[Sample]) -> WrittenShard:
    """Writes one shard atomically. Raises StarfireError where the disk refuses."""
    members = []
    with atomic_write(path) as file:
        summed = _Summed(file)
        with tarfile.open(fileobj=summed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for sample in samples:
                _add(archive, f"{sample.key:08d}.{sample.ending}", sample.content)
                # tarfile pads to blocks of 512 bytes; the content began where those of its length begin.
                padded = -(-len(sample.content) // 512) * 512
                members.append((archive.offset - padded, len(sample.content), sample.label, sample.key))
                _add(archive, f"{sample.key:08d}.cls", str(sample.label).encode())
    return WrittenShard(bytes=summed.length, sha256=summed.digest.hexdigest(), members=members)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644  # times and owners stay 0: the same bytes wherever it is written
    archive.addfile(info, io.BytesIO(content))


class _Summed(io.RawIOBase):
    """A file that counts and hashes the bytes written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.length, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Writes `data`; returns its length in bytes."""
        self.digest.update(data)
        self.length += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """The number of bytes written."""
        return self.length
