"""The container of packed files: named byte strings in a safetensors file with checksums.

The file is plain safetensors: 8 bytes with the length of a JSON header, the header, the data. Its metadata begin with
a checksum of the header, so that a flipped bit in a name, a size or an offset is found before it is believed. Reading
compares every size with the file's before memory is taken.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from starfire_cli.damage import Damaged, reading
from starfire_cli.errors import StarfireError
from starfire_cli.formats.packed.dtypes import BY_NAME

MARK = "starfire-packed"
VERSION = "1"
WITH_CODEBOOKS = "2"  # what a reader of version 1 would take for other values
_KNOWN = (VERSION, WITH_CODEBOOKS)
_LONGEST_HEADER = 100_000_000  # what the safetensors library accepts
_CRC = re.compile(rb'"header_crc32":"([0-9a-f]{8})"')
_VERSION = re.compile(rb'"format":"starfire-packed","version":"([^"]{1,20})"')
_ZEROS = b'"header_crc32":"00000000"'


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry to be written: a tensor's name, safetensors type, shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class Piece:
    """An entry as read: like `Entry`, but with the position of its bytes in the data part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def write(file: IO[bytes], entries: Sequence[Entry], metadata: Mapping[str, str], version: str = VERSION) -> int:
    """Writes `entries`, in this order in the header. Returns the file's size in bytes."""
    first = {"format": MARK, "version": version, "header_crc32": "0" * 8}
    header: dict[str, Any] = {"__metadata__": first | dict(metadata)}
    # Wide types first, so that each tensor begins where a multiple of its item size does.
    stored = sorted(entries, key=lambda entry: -BY_NAME[entry.dtype].itemsize)
    at = 0
    offsets = {}
    for entry in stored:
        size = memoryview(entry.data).nbytes
        offsets[entry.name] = [at, at + size]
        at += size
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets[entry.name]}
    assert len(header) == len(entries) + 1, "names are unique, and none is __metadata__"
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    assert head.count(_ZEROS) == 1
    crc = f"{zlib.crc32(head):08x}".encode()
    file.write(head.replace(_ZEROS, _ZEROS.replace(b"00000000", crc)))
    for entry in stored:
        file.write(entry.data)
    return len(head) + at


def is_marked(path: Path) -> bool:
    """Whether the file is marked as a packed one; also where one byte of the mark is damaged."""
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError:
        return False
    return MARK.encode() in head or b'"header_crc32":"' in head


class Container:
    """An open file: its metadata, and its pieces by name in the header's order. The data are mapped, not read.

    Raises Damaged where header and file do not fit together, StarfireError where the file cannot be read or is of
    another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path), open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size < 8:
                raise Damaged("the file is cut short")
            self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        count = int.from_bytes(self._bytes[:8], "little")
        if count > min(self.size - 8, _LONGEST_HEADER):
            raise Damaged(f"its header is announced with {count} bytes, the file has {self.size}")
        self._data = 8 + count
        self.metadata, self.pieces = self._header(bytes(self._bytes[: self._data]))

    def read(self, piece: Piece) -> memoryview:
        """A piece's bytes, without a copy; may be called from several threads."""
        return self._bytes[self._data + piece.start : self._data + piece.stop]

    def _header(self, head: bytes) -> tuple[dict[str, str], dict[str, Piece]]:
        version = _VERSION.search(head, 0, 256)
        if version and version[1].decode(errors="replace") not in _KNOWN:
            given, known = version[1].decode(errors="replace"), " and ".join(_KNOWN)
            raise StarfireError(f"{self.path} has packed format version {given!r}; this starfire reads {known}")
        found = _CRC.findall(head)
        if len(found) != 1 or int(found[0], 16) != zlib.crc32(_CRC.sub(_ZEROS, head)):
            raise Damaged("the header does not match its checksum")
        with reading(self.path, "the header cannot be read"):
            header = json.loads(head[8:], object_pairs_hook=_no_twins)
            metadata = header.pop("__metadata__")
            pieces = {name: _piece(name, entry) for name, entry in header.items()}
        if metadata.get("format") != MARK or metadata.get("version") not in _KNOWN:
            raise Damaged(f"the header does not say {MARK}, version {' or '.join(_KNOWN)}")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise Damaged("the metadata are not text")
        at = 0
        for piece in sorted(pieces.values(), key=lambda p: (p.start, p.stop)):
            if piece.start != at or piece.stop < at:
                raise Damaged(f"{piece.name} begins at {piece.start}, not where the one before it ends")
            at = piece.stop
        if self._data + at != self.size:
            raise Damaged(f"the header describes {self._data + at} bytes, the file has {self.size}")
        return metadata, pieces


def _piece(name: str, entry: Any) -> Piece:
    start, stop = entry["data_offsets"]
    shape = entry["shape"]
    if type(start) is not int or type(stop) is not int or not isinstance(entry["dtype"], str):
        raise ValueError(f"the entry of {name}")
    return Piece(name=name, dtype=entry["dtype"], shape=checked_shape(shape), start=start, stop=stop)


def checked_shape(shape: Any) -> tuple[int, ...]:
    """A value from a file as a shape. Raises Damaged."""
    if not isinstance(shape, list) or len(shape) > 32 or not all(type(s) is int and s >= 0 for s in shape):
        raise Damaged("what it gives for its shape is no shape")
    return tuple(shape)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name comes twice")
    return result
