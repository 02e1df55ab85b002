"""Disk cache for decoded images and file lists: one file a data set, in the user's cache folder.

The name of a file of images is a digest of every image's name, size and time of change, so that a changed set is a new
file; its content is checked, so that a damaged one is made anew. Only what this module wrote is ever removed: files
whose names are of its pattern, in a folder of its own. But for a STARFIRE_CACHE without meaning, nothing stops a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
import time
import zlib
from pathlib import Path
from threading import get_ident

import torch
from torch import Tensor

from starfire_cli.data.source import Encoded
from starfire_cli.data.user_paths import expanded

VERSION = 1
OWN = "starfire-cache"  # the folder in STARFIRE_CACHE that holds nothing but what is written here
WORTH_KEEPING = 5000  # images; fewer are decoded again in about a second
LIMIT = 20 * 2**30  # bytes in all; the files not used for longest go first


_NAME = re.compile(r"[A-Za-z0-9._-]+-[0-9a-f]{24}(\.listing)?\.safetensors")
_PARTIAL = re.compile(_NAME.pattern + r"\.[0-9]+-[0-9]+\.partial")
_DAY = 86_400


def folder() -> Path | None:
    """A folder of our own in STARFIRE_CACHE, else the platform's cache folder; None for `off`, empty, or no home.

    Raises StarfireError where STARFIRE_CACHE names the home of a user who is not there.
    """
    given = os.environ.get("STARFIRE_CACHE")
    if given is not None:
        return expanded(given, f"STARFIRE_CACHE={given}") / OWN if given and given != "off" else None
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA", "~\\AppData\\Local")).expanduser() / "starfire" / "Cache"
        if sys.platform == "darwin":
            return Path("~/Library/Caches/starfire").expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "starfire"
    except RuntimeError:  # a user without a home, as in some containers
        return None


def file_name(title: str, digest: str, *, listing: bool = False) -> str:
    """The name of a cache file: a title for people, and the digest (24 hex digits) that identifies it."""
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '_', title)[:100]}-{digest}{'.listing' if listing else ''}.safetensors"
    assert _NAME.fullmatch(name), name
    return name


def cache_file(files: Encoded, side: int) -> Path | None:
    """The cache file for these images at this size; None where nothing is to be cached."""
    where = folder()
    if where is None or len(files) < WORTH_KEEPING:
        return None
    digest = hashlib.blake2b(f"{VERSION} {side} ".encode(), digest_size=12)
    try:
        for stamp in files.stamps():
            digest.update(stamp)
    except OSError:  # a link into nowhere; decoding will name it
        return None
    return where / file_name(f"{files.title}-{len(files)}x{side}", digest.hexdigest())


def load(file: Path | None, count: int, side: int) -> Tensor | None:
    """uint8 (count, 3, side, side), or None where there is no such file or it is damaged (it is then removed)."""
    images = (read(file) or {}).get("images")
    if file is None or images is None:
        return None
    if images.dtype == torch.uint8 and images.shape == (count, 3, side, side):
        return images
    _remove(file)
    return None


def save(file: Path | None, images: Tensor) -> list[str]:
    """Caches decoded images; returns a note where that is not possible."""
    problem = None if file is None else write(file, {"images": images})
    if file is None or problem is None:
        return []
    return [f"decoded images are not kept in {file.parent} ({problem}); STARFIRE_CACHE=FOLDER names another place"]


def read(file: Path | None) -> dict[str, Tensor] | None:
    """The tensors in a cache file, or None where there is no such file or it is damaged (it is then removed)."""
    from safetensors import safe_open

    try:
        if file is None or not stat.S_ISREG(os.stat(file).st_mode):
            return None
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name).clone() for name in sorted(content.keys())}
            if content.metadata()["crc32"] == _crc(tensors):
                with contextlib.suppress(OSError):  # another user's, or on a read-only disk
                    os.utime(file)
                return tensors
    except OSError:  # not there, or it may not be read, or the disk has gone
        return None
    except Exception:  # noqa: BLE001 - whatever a damaged file provokes, it is made anew
        pass
    assert file is not None
    _remove(file)
    return None


def write(file: Path, tensors: dict[str, Tensor]) -> Exception | None:
    """Writes tensors to a cache file atomically; returns the obstacle, where there is one."""
    from safetensors.torch import save_file

    partial = file.with_name(f"{file.name}.{os.getpid()}-{get_ident()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _make_room(file.parent, sum(tensor.nbytes for tensor in tensors.values()))
        with open(partial, "xb"):  # nobody's link or file is written into
            pass
    except OSError as error:
        return error
    try:
        save_file(tensors, partial, metadata={"crc32": _crc(tensors)})
        os.replace(partial, file)
    except Exception as error:  # noqa: BLE001 - safetensors has its own error for a full disk; the run needs no cache
        with contextlib.suppress(OSError):
            partial.unlink()
        return error
    return None


def _crc(tensors: dict[str, Tensor]) -> str:
    crc = 0
    for _, tensor in sorted(tensors.items()):
        crc = zlib.crc32(tensor.contiguous().numpy().data, crc)
    return str(crc)


def _make_room(where: Path, needed: int) -> None:
    """Removes the least recently used cache files until `needed` more bytes fit. Concurrent removal by others is no
    error.
    """
    kept = []
    for file, status in _own_files(where):
        if not file.name.endswith(".partial"):
            kept.append((status.st_mtime, status.st_size, file))
        elif status.st_mtime < time.time() - _DAY:  # its process was killed
            _remove(file)
    kept.sort()
    total = needed + sum(size for _, size, _ in kept)
    for _, size, file in kept:
        if total <= LIMIT:
            return
        _remove(file)
        total -= size


def _own_files(where: Path) -> list[tuple[Path, os.stat_result]]:
    """The cache files that runs of this user wrote, by name, kind and owner."""
    with contextlib.suppress(OSError), os.scandir(where) as entries:
        files = [Path(entry.path) for entry in entries]
        return [(file, status) for file in files if (status := _status(file))]
    return []


def _status(file: Path) -> os.stat_result | None:
    """The file's status if it is a cache file that may be removed; None for any other."""
    if not (_NAME.fullmatch(file.name) or _PARTIAL.fullmatch(file.name)):
        return None
    try:
        status = os.lstat(file)
    except OSError:
        return None
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    return None if foreign or not stat.S_ISREG(status.st_mode) else status


def _remove(file: Path) -> None:
    if _status(file):
        with contextlib.suppress(OSError):
            file.unlink()
