"""The lock on a run folder: one writing process at a time, released by the operating system when it dies.

A record lock (POSIX) on the file `.lock`. Unlike `flock` it is not inherited by loader workers, which may outlive a
killed process by seconds, and it works over NFS. Readers of a run never look at it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

from starfire_cli.damage import reading
from starfire_cli.errors import StarfireError
from starfire_cli.formats.atomic import disk_problem, host_name
from starfire_cli.text import printable

FILE = ".lock"
_BUSY = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
# Record locks do not keep a process from itself, and it loses one by closing any other descriptor of the file.
_held: dict[tuple[int, int], bytes] = {}


@contextlib.contextmanager
def locked(folder: Path, command: str = "", *, noun: str = "trained", again: str = "") -> Iterator[bool]:
    """Holds the lock on `folder` within the block, against other processes and other calls in this one.

    Yields whether there is a lock: False where the file system knows none, or the system has no record locks.

    Args:
        folder: a run folder that is there.
        command: what the holder is doing, for whoever comes later.
        noun: what is being done to the folder, for whoever comes second.
        again: how to go on later, for the same; empty for `train --resume`.

    Raises:
        StarfireError: another process has it, which is named; or the folder cannot be written.
    """
    path = folder / FILE
    busy = partial(_busy_error, folder, path, noun, again or f"go on with --resume {folder}")
    descriptor = _acquired(path, command, busy)
    if descriptor is None:
        yield False
        return
    identity = _identity(os.fstat(descriptor))
    _held[identity] = _holder(command)
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # while it is locked: whoever waits for the name takes a new file
            path.unlink()
        del _held[identity]
        os.close(descriptor)


def _acquired(path: Path, command: str, busy: Callable[[bytes], StarfireError]) -> int | None:
    """The descriptor that holds the lock."""
    if sys.platform == "win32":
        return None
    import fcntl

    while True:
        with contextlib.suppress(OSError):
            if said := _held.get(_identity(os.stat(path))):
                raise busy(said)
        descriptor: int | None = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _still_named(descriptor, path):  # the one before us has just let go, and removed it
                os.close(descriptor)
                continue
            with contextlib.suppress(OSError):  # a full disk may say nothing of the holder, but it locks
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _holder(command))
            return descriptor
        except OSError as error:
            if descriptor is not None:
                os.close(descriptor)
                if error.errno in _BUSY:
                    raise busy(_read(path)) from None
                if error.errno in _NO_LOCKS:
                    return None
            raise disk_problem(error, path) or error from None


def _still_named(descriptor: int, path: Path) -> bool:
    try:
        return _identity(os.fstat(descriptor)) == _identity(os.stat(path))
    except FileNotFoundError:
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _holder(command: str) -> bytes:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    said = {"pid": os.getpid(), "host": host_name(), "since": since, "command": command[:2000]}
    return json.dumps(said).encode() + b"\n"


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(10_000)
    except OSError:
        return b""


def _busy_error(folder: Path, path: Path, noun: str, again: str, text: bytes) -> StarfireError:
    """The error for whoever comes second; `text` is the content of the lock, if any."""
    who, since, doing = "another process", "", ""
    with contextlib.suppress(StarfireError), reading(path):
        said = json.loads(text)
        since = f" since {printable(str(said['since']), 40)}"
        doing = f" ({printable(str(said['command']), 200)})" if said["command"] else ""
        who = f"process {int(said['pid'])} on {printable(str(said['host']), 60)}"
    return StarfireError(
        f"{folder} is being {noun} by {who}{since}{doing}; wait until it ends, or stop it, and then {again}"
    )
