"""Where are decoded images, and lists of files, kept between runs? In one file a set, in the user's cache folder.

The name of a file of images is a digest of every image's name, size and time of change, so that a changed set is a new
file; its content is checked, so that a damaged one is made anew. Nothing here ever stops a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor

from starfire_cli.data.source import Encoded

VERSION = 1
WORTH_KEEPING = 5000  # images; fewer are decoded again in about a second
LIMIT = 20 * 2**30  # bytes in all; the files not used for longest go first


def folder() -> Path | None:
    """STARFIRE_CACHE, else the platform's cache folder; None where STARFIRE_CACHE is `off` or empty."""
    given = os.environ.get("STARFIRE_CACHE")
    if given is not None:
        return Path(given).expanduser() if given and given != "off" else None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~\\AppData\\Local")).expanduser() / "starfire" / "Cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/starfire").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "starfire"


def key(files: Encoded, side: int) -> Path | None:
    """The file for these images at this size; None where nothing is to be kept."""
    where = folder()
    if where is None or len(files) < WORTH_KEEPING:
        return None
    digest = hashlib.blake2b(f"{VERSION} {side} ".encode(), digest_size=12)
    try:
        for stamp in files.stamps():
            digest.update(stamp)
    except OSError:  # a link into nowhere; decoding will name it
        return None
    return where / f"{files.title}-{len(files)}x{side}-{digest.hexdigest()}.safetensors"


def load(file: Path | None, count: int, side: int) -> Tensor | None:
    """uint8 (count, 3, side, side), or None where there is no such file or it is damaged (it is then removed)."""
    images = (read(file) or {}).get("images")
    if file is None or images is None:
        return None
    if images.dtype == torch.uint8 and images.shape == (count, 3, side, side):
        return images
    with contextlib.suppress(OSError):
        file.unlink()
    return None


def save(file: Path | None, images: Tensor) -> list[str]:
    """Keep decoded images; a note where that is not possible."""
    problem = None if file is None else write(file, {"images": images})
    if file is None or problem is None:
        return []
    return [f"decoded images are not kept in {file.parent} ({problem}); STARFIRE_CACHE=FOLDER names another place"]


def read(file: Path | None) -> dict[str, Tensor] | None:
    """The tensors in a file of ours, or None where there is no such file or it is damaged (it is then removed)."""
    from safetensors import SafetensorError, safe_open

    if file is None or not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name).clone() for name in sorted(content.keys())}
            checked = content.metadata()["crc32"] == _crc(tensors)
        if checked:
            os.utime(file)
            return tensors
    except (SafetensorError, OSError, KeyError, TypeError):
        pass
    with contextlib.suppress(OSError):
        file.unlink()
    return None


def write(file: Path, tensors: dict[str, Tensor]) -> Exception | None:
    """Keep tensors in a file that is there whole or not at all; what is in the way, where something is."""
    from safetensors.torch import save_file

    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _make_room(file.parent, sum(tensor.nbytes for tensor in tensors.values()))
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
    kept = [(f.stat().st_mtime, f.stat().st_size, f) for f in where.glob("*.safetensors")]
    total = needed + sum(size for _, size, _ in kept)
    for _, size, file in sorted(kept):
        if total <= LIMIT:
            return
        file.unlink()
        total -= size
