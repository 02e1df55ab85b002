"""Errors of damaged files: turns any exception of a reader into one line that names the file.

A damaged or hostile file can provoke any exception in the code that reads it, so no reader lists them: it does its
parsing under `reading(path)`, and nothing but parsing, so that what goes wrong there is the file's fault.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starfire_cli.errors import StarfireError
from starfire_cli.text import printable, reason

# The system's answers to a size, an offset or a name that no sound file makes us ask for; without a number an OSError
# is a library's word for bad content.
_ASKED = {None, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG, errno.ENAMETOOLONG, errno.EDOM, errno.ERANGE}


class DamagedFile(StarfireError):
    """A file's content is not what its format allows."""


class Damaged(ValueError):
    """A fault that a reader finds in a file, in words for the user; `reading` adds the file's name."""


@contextmanager
def reading(path: Path | str, part: str = "") -> Iterator[None]:
    """Parse `path` inside the block; whatever its content provokes there becomes a `DamagedFile`.

    Errors that say what is wrong already (`StarfireError`, and those of an inner `reading`) pass unchanged; so do
    interrupts. The cause stays chained, for STARFIRE_TRACEBACK=1.

    Args:
        path: what is read, repeated in the error.
        part: of the file ("conv1.weight", "line 3"), repeated behind it.

    Raises:
        DamagedFile: "PATH is damaged: ..."; also where it asks for memory that is not there.
        StarfireError: "cannot read PATH: ..." where the system refuses (permission, a broken disk, no such file).
    """
    try:
        yield
    except StarfireError:
        raise
    except Exception as error:
        if type(error) is NameError or isinstance(error, ImportError):
            raise  # no file's content does that: it is our own mistake, or a package that is not there
        where = f"{printable(part, 160)}: " if part else ""
        if _no_memory(error):
            text = "reading it takes more memory than there is; it is damaged, or too large for this machine"
            raise DamagedFile(f"{path}: {where}{text}") from error
        if isinstance(error, OSError) and error.errno not in _ASKED:
            raise StarfireError(f"cannot read {path}: {where}{(error.strerror or reason(error)).lower()}") from error
        raise DamagedFile(f"{path} is damaged: {where}{_told(error)}") from error


def _no_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)  # the latter is torch's RuntimeError


def _told(error: Exception) -> str:
    """The text of an error, with its class where the text alone would be a riddle."""
    if isinstance(error, Damaged):
        return reason(error, 400)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"{reason(error)} is missing"
    return f"{type(error).__name__}: {reason(error)}" if str(error) else type(error).__name__
