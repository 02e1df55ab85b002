"""The members of a tar file, read from its headers.

Python's tarfile goes wherever a damaged header sends it: backwards, or through records that cost time and memory in
proportion to the square of their length. Here every step goes forward, and nothing is read that the file does not have.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from starfire_cli.damage import Damaged

BLOCK = 512
LONGEST = 2**20  # bytes of a pax header or a long name
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


class Readable(Protocol):
    """A stream that is read from front to back."""

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer at the end, and where a stream has no more just then."""


class Member(NamedTuple):
    """A regular file in a tar file: its name, where its content begins, its length, and its first bytes."""

    name: str
    offset: int
    size: int
    start: bytes


def members(file: Readable, length: int | None = None, *, first: int = 64) -> Iterator[Member]:
    """The regular files in a tar file (ustar, GNU or pax), in order; sparse ones, links and folders are passed over.

    Args:
        file: open at its first byte; sought in where `length` is given, else read through.
        length: of the file in bytes.
        first: how many bytes of its content each member brings along.

    Raises:
        Damaged: a header that is none, or that names more bytes than there are. Call it under `damage.reading`.
    """
    at = _Cursor(file, length)
    everywhere: dict[str, str] = {}
    own: dict[str, str] = {}
    while (header := at.header()) is not None:
        if header.type == tarfile.XGLTYPE:
            everywhere |= _records(at.content(header.size))
        elif header.type in _PAX:
            own |= _records(at.content(header.size))
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            own["path"] = at.content(header.size).partition(b"\0")[0].decode("utf-8", "surrogateescape")
        elif header.type == tarfile.GNUTYPE_LONGLINK:
            at.content(header.size)
        else:
            said = everywhere | own
            own = {}
            size = _size(said["size"]) if "size" in said else header.size
            if size < 0:
                raise Damaged(f"a member of {size} bytes")
            if header.type == tarfile.GNUTYPE_SPARSE:
                at.sparse_blocks(header)
            if header.type in _WITHOUT_CONTENT:
                continue
            begin = at.offset
            start = at.skip(size, first)
            sparse = any(key.startswith("GNU.sparse.") for key in said)
            if header.type in _FILES and not sparse:
                yield Member(said.get("path", header.name), begin, size, start)


class _Cursor:
    """The position of the next header in the file."""

    def __init__(self, file: Readable, length: int | None) -> None:
        self._file, self._length, self.offset = file, length, 0
        self._block = b""

    def header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end, which is a block of zeros or the end of the file."""
        self._block = self._read(BLOCK)
        if not self._block or not self._block.strip(b"\0"):
            if self._block and len(self._block) < BLOCK:
                raise Damaged(f"it ends in a header, after {self.offset} bytes")
            return None
        try:
            return tarfile.TarInfo.frombuf(self._block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise Damaged(
                f"no header at byte {self.offset - len(self._block)} ({error}); cut off or overwritten"
            ) from None

    def content(self, size: int) -> bytes:
        """The content of a header that describes the next one."""
        if not 0 <= size <= LONGEST:
            raise Damaged(f"a header of {size} bytes at byte {self.offset - BLOCK}")
        content = self._read(-(-size // BLOCK) * BLOCK)
        if len(content) < size:
            raise Damaged(f"it ends in a header, after {self.offset} bytes")
        return content[:size]

    def sparse_blocks(self, header: tarfile.TarInfo) -> None:
        """Skips the extension blocks of an old GNU sparse header."""
        more = self._block[482]
        while more:
            block = self._read(BLOCK)
            if len(block) < BLOCK:
                raise Damaged(f"it ends in the header of {header.name}")
            more = block[504]

    def skip(self, size: int, first: int) -> bytes:
        """Skips a member's content and its padding; returns its first bytes."""
        end, padded = self.offset + size, self.offset + -(-size // BLOCK) * BLOCK
        if self._length is not None and end > self._length:
            raise Damaged(f"a member of {size} bytes at byte {self.offset}, and {self._length} in all; it was cut off")
        start = self._read(min(size, first))
        if self._length is None:
            while self.offset < padded and self._read(min(padded - self.offset, 2**18)):
                pass
            if self.offset < end:
                raise Damaged(f"it ends after {self.offset} bytes in a member that goes on to {end}; it was cut off")
        else:
            self.offset = min(padded, self._length)
            self._file.seek(self.offset)  # type: ignore[attr-defined]
        return start

    def _read(self, size: int) -> bytes:
        parts, missing = [], size
        while missing and (data := self._file.read(missing)):
            parts.append(data)
            missing -= len(data)
        self.offset += size - missing
        return b"".join(parts)


def _size(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Damaged(f"a member of {text[:30]!r} bytes") from None


def _records(content: bytes) -> dict[str, str]:
    """The relevant fields of a pax header: `LENGTH KEY=VALUE` lines, one behind the other."""
    found: dict[str, str] = {}
    at = 0
    while at < len(content) and content[at]:
        space = content.find(b" ", at, at + 12)
        digits = content[at:space]
        end = at + int(digits) if space > 0 and digits.isdigit() else 0
        if not space < end <= len(content):
            raise Damaged("a pax header whose lengths do not fit")
        key, equals, value = content[space + 1 : end].removesuffix(b"\n").partition(b"=")
        if not equals:
            raise Damaged("a pax header without keys")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            found[key[:20].decode("ascii", "replace")] = value.decode("utf-8", "surrogateescape")
        at = end
    return found
