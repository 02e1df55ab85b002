"""Standard streams that no command dies of: closed ones, full disks, closed pipes, encodings that lack a character."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@dataclass
class Lost:
    """The error that kept output from being written to stdout, if any.

    Args:
        error: the first one that the system gave; None while all went well.
    """

    error: OSError | None = None


@contextlib.contextmanager
def steady_streams() -> Iterator[Lost]:
    """Let nothing that is printed within the block raise; yields what became of stdout, to be asked at the end.

    Streams that are not the process's own (a test's, a notebook's) are left as they are. On leaving, everything is as
    before, but for standard descriptors that were closed: they lead to the null device, or the next file that is
    opened would get their numbers, and what libraries print.
    """
    before = sys.stdout, sys.stderr
    lost = Lost()
    _plug()
    sys.stdout, sys.stderr = _steady(sys.stdout, 1, lost), _steady(sys.stderr, 2, Lost())
    try:
        yield lost
        sys.stdout.flush()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _plug() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free: this one


def _steady(stream: TextIO | None, descriptor: int, lost: Lost) -> TextIO:
    if stream is None:  # as Python has it where the descriptor was closed
        null: Any = _Raw(descriptor, lost)
        return io.TextIOWrapper(null, encoding="utf-8", errors="backslashreplace", write_through=True)
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(raw, io.FileIO):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    steady: Any = _Raw(raw.fileno(), lost)  # which a TextIOWrapper takes like a FileIO, whatever its stub says
    return io.TextIOWrapper(
        steady if raw is buffer else io.BufferedWriter(steady),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Raw(io.RawIOBase):
    """A descriptor to which everything can be written; after the first error it goes nowhere. Never closes it."""

    def __init__(self, descriptor: int, lost: Lost) -> None:
        self._descriptor, self._lost = descriptor, lost

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while self._lost.error is None and written < len(view):
            try:
                written += os.write(self._descriptor, view[written:])
            except BlockingIOError:  # a pipe that another program has made non-blocking
                _wait_for_room(self._descriptor)
            except OSError as error:
                self._lost.error = error
        return len(view)


def _wait_for_room(descriptor: int) -> None:
    try:
        select.select([], [descriptor], [])
    except OSError:  # Windows selects among sockets only
        time.sleep(0.01)


def reader_gone(error: OSError) -> bool:
    """Whether the reader of our output has left, as `head` does, so that nobody needs to be told."""
    return error.errno == errno.EPIPE
