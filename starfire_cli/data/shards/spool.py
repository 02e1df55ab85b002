"""Local copies of remote shards: fetched ahead of use, shared by all processes, limited in total size.

Every shard is streamed into a file of its own, which can be read while it grows. What is no longer needed makes room.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, get_ident

from starfire_cli.data.shards import remote
from starfire_cli.errors import StarfireError

PATIENCE = 120.0  # seconds without a byte
LIMIT = 20.0  # GB kept, where STARFIRE_SPOOL does not say
_WHOLE = re.compile(r"[0-9]{6}-[0-9a-f]{16}\.tar")  # the names that `file` gives; nothing else is removed


@dataclass(frozen=True, kw_only=True)
class Spool:
    """The local files of a remote set.

    Args:
        folder: where they lie.
        urls: one a shard.
        lengths: their sizes in bytes.
        checksums: their SHA-256 in hex.
    """

    folder: Path
    urls: tuple[str, ...]
    lengths: tuple[int, ...]
    checksums: tuple[str, ...]

    def file(self, shard: int) -> Path:
        """The path of the whole shard."""
        return self.folder / f"{shard:06d}-{self.checksums[shard][:16]}.tar"

    def wait(self, shard: int, end: int) -> str:
        """Waits for the first `end` bytes of the shard and returns a file that holds them. Raises StarfireError."""
        whole, problem = self.file(shard), _sibling(self.file(shard), ".error")
        part = _sibling(whole, ".part")
        seen, since = -1, time.monotonic()
        while True:
            if whole.exists():
                return str(whole)
            with contextlib.suppress(OSError):
                raise StarfireError(problem.read_text())
            size = part.stat().st_size if part.exists() else 0
            if size >= end:
                return str(part)
            if size != seen:
                seen, since = size, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise StarfireError(f"{self.urls[shard]}: nothing has come for {PATIENCE:g} s; try again later")
            time.sleep(0.01)

    def fetch(self, shard: int, ended: Event) -> None:
        """Downloads a shard, unless it is here or another process downloads it; errors are left for `wait`."""
        whole = self.file(shard)
        part, problem = _sibling(whole, ".part"), _sibling(whole, ".error")
        try:
            problem.unlink(missing_ok=True)
            while not whole.exists() and not ended.is_set():
                with open(part, "ab") as file:
                    if not _locked(file.fileno()):
                        time.sleep(0.2)  # its process may die; then it is ours to bring
                    elif _same_file(part, file.fileno()) and not whole.exists():
                        self._download(shard, file.fileno(), ended)
        except (StarfireError, OSError) as error:
            if not ended.is_set():
                written = _sibling(problem, f".{os.getpid()}-{get_ident()}")
                with contextlib.suppress(OSError):  # under its name once it is whole: `wait` reads what it finds
                    written.write_text(str(error))
                    os.replace(written, problem)

    def make_room(self, needed: set[int]) -> None:
        """Removes whole shards that are not needed, the oldest first, until the rest and the needed ones fit."""
        keep = {self.file(shard) for shard in needed}
        total = float(sum(self.lengths[shard] for shard in needed))
        others = []
        for file in self.folder.glob("*.tar"):
            with contextlib.suppress(OSError):  # another process was faster
                status = os.lstat(file)
                if file not in keep and _WHOLE.fullmatch(file.name) and stat.S_ISREG(status.st_mode):
                    others.append((status.st_mtime, status.st_size, file))
        total += sum(size for _, size, _ in others)
        for _, size, file in sorted(others):
            if total <= limit():
                return
            with contextlib.suppress(OSError):
                file.unlink()
            total -= size

    def executor(self, threads: int) -> ThreadPoolExecutor:
        """The thread pool for downloads. Raises StarfireError where the folder cannot be made."""
        if sys.platform == "win32":  # where a file that is being written and read cannot take its name
            raise StarfireError("shards behind a URL need Linux or macOS; copy them to a folder for --data FOLDER")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if hasattr(os, "getuid") and self.folder.stat().st_uid != os.getuid():
                raise StarfireError(f"remote shards need {self.folder}, which is somebody else's; set STARFIRE_CACHE")
        except OSError as error:
            raise StarfireError(
                f"remote shards need {self.folder} ({error.strerror}); STARFIRE_CACHE=FOLDER names another place"
            ) from None
        return ThreadPoolExecutor(threads, thread_name_prefix="starfire-shards")

    def _download(self, shard: int, descriptor: int, ended: Event) -> None:
        """Downloads into the file that this process has locked, then renames it; on failure it is removed."""
        whole = self.file(shard)
        part = _sibling(whole, ".part")
        try:
            os.ftruncate(descriptor, 0)
            self._receive(shard, descriptor, ended)
            os.replace(part, whole)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    def _receive(self, shard: int, descriptor: int, ended: Event) -> None:
        url, digest, received = self.urls[shard], hashlib.sha256(), 0
        with remote.open_url(url) as stream:
            while data := stream.read(2**18):
                if ended.is_set():
                    raise StarfireError("no longer needed")
                _write(descriptor, data)
                digest.update(data)
                received += len(data)
                if received > self.lengths[shard]:  # a server that never ends must not fill the disk
                    break
        if digest.hexdigest() != self.checksums[shard]:
            raise StarfireError(
                f"{url} is not what the index says ({received} bytes, not {self.lengths[shard]}, or others): "
                "it was cut off, or has changed since it was indexed"
            )


def limit() -> float:
    """Bytes that spooled shards may take on the disk. Raises StarfireError."""
    given = os.environ.get("STARFIRE_SPOOL")
    try:
        gigabytes = float(given) if given else LIMIT
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise StarfireError(f"STARFIRE_SPOOL={given!r} must be a number of GB, 0 or more")
    return 1e9 * gigabytes


def _sibling(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def _same_file(path: Path, descriptor: int) -> bool:
    """Whether the open file still has that name: another process may have renamed or removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _locked(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: one process a set, then
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
