"""Atomic file writing: a reader finds either the whole old file or the whole new one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from starfire_cli.errors import StarfireError
from starfire_cli.text import size_text as size_text  # others know it from here

_counter = itertools.count()
_mine: set[Path] = set()
_DAY = 86_400
_TEMPORARY = re.compile(r"([A-Za-z0-9]{1,32})-([0-9]{1,9})-[0-9]+\.tmp")  # host, process: nothing else is removed


@contextlib.contextmanager
def atomic_write(path: Path, *, need: int | None = None) -> Iterator[IO[bytes]]:
    """Opens a binary file that is renamed to `path` when the block succeeds, and removed when it fails.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name in one step; the
    folder is flushed too. Temporary files that a killed process left behind for the same name are removed first.

    Args:
        path: what to write; a symbolic link keeps pointing where it does, and its target is replaced.
        need: about how many bytes are coming, for the message when the disk is full.

    Raises:
        StarfireError: the folder does not exist or cannot be written, or the disk is full.
    """
    target = _target(path)
    _remove_stale(target)
    temporary = target.with_name(f".{target.name}.{_host()}-{os.getpid()}-{next(_counter)}.tmp")
    _mine.add(temporary)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        problem = _explain(error, path, target.parent, need)  # after that, so that "free" is what there was to use
        if problem is not None:
            raise problem from None
        raise
    finally:
        _mine.discard(temporary)


def _target(path: Path) -> Path:
    """The file that takes the name, links followed. Raises StarfireError where none can be, or no plain one is."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise StarfireError(f"{path} is a folder; give the name of a file in it")
    if not target.parent.is_dir():
        raise StarfireError(f"cannot write {path}: there is no folder {target.parent}")
    if target.exists() and not target.is_file():
        raise StarfireError(f"{path} is a device, pipe or socket, which is not replaced; give the name of a file")
    return target


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 (see `atomic_write`)."""
    data = text.encode()
    with atomic_write(path, need=len(data)) as file:
        file.write(data)


def check_writable(path: Path) -> None:
    """Raises StarfireError, as `atomic_write` would, if nothing can be written at `path`; changes nothing."""
    target = _target(path)
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise disk_problem(error, path) or error from None


def check_new_folder(path: Path) -> None:
    """Raises StarfireError if `path` is no folder and none can be made there, its parents with it; changes nothing."""
    found = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not found.is_dir():
        raise StarfireError(f"cannot write {path}: {found} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=found):
            pass
    except OSError as error:
        raise _explain(error, path, found, None) or error from None


def disk_problem(error: BaseException, path: Path, need: int | None = None) -> StarfireError | None:
    """The error text if `error`, or its cause, is a disk that refuses; None for any other error."""
    return _explain(error, path, Path(os.path.realpath(path)).parent, need)


def _explain(error: BaseException, path: Path, folder: Path, need: int | None) -> StarfireError | None:
    # torch wraps an OSError raised while it writes into a RuntimeError of its own ("unexpected pos").
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    if seen is None:
        return None
    if seen.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(folder).free
        text = f"disk full: need {'more' if need is None else size_text(need)}, {size_text(free)} free in {folder}"
        return StarfireError(f"cannot write {path}: {text}")
    return StarfireError(f"cannot write {path}: {seen.strerror or seen}")


def _remove_stale(target: Path) -> None:
    """Removes temporary files for `target` whose process on this host has ended, and those a day old.

    Age decides for files from other hosts, and on Windows.
    """
    for left in target.parent.glob(f".{_escape(target.name)}.*.tmp"):
        ours = _TEMPORARY.fullmatch(left.name[len(target.name) + 2 :])
        if left in _mine or ours is None or not left.is_file() or left.is_symlink():
            continue
        host, pid = ours.groups()
        with contextlib.suppress(OSError):
            asked = host == _host() and sys.platform != "win32"  # where signal 0 is Ctrl-C, not a question
            dead = not _alive(int(pid)) if asked else left.stat().st_mtime < time.time() - _DAY
            if dead:
                left.unlink()


def _alive(pid: int) -> bool:
    if pid == os.getpid():  # not in `_mine`, so from an earlier process with our number (usual in containers)
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _host() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum())[:32] or "host"


def host_name() -> str:
    """This machine, as letters and digits that a file name may hold."""
    return _host()


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _sync_folder(folder: Path) -> None:
    """Syncs the folder so that the new name is durable; does nothing where folders cannot be opened (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
