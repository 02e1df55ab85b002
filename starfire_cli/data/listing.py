"""Lists the images in class folders, cached so that a folder of a million files is not read again.

The names are kept in the user's cache folder, with the times of change of every folder that was read: a file that comes
or goes changes its folder's. What is kept is trusted only while all of those are as they were. Nothing here ever stops
a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from starfire_cli.data import cache, scan
from starfire_cli.data.source import Files

VERSION = 2
WORTH_KEEPING = 20_000  # images; fewer are listed again in a tenth of a second on a local disk
SETTLED = 2.0  # seconds; what changed so recently may change again and keep its time of change


def class_files(root: Path, folders: Sequence[str]) -> Files:
    """The images of class folders, as `scan.class_files` finds them; remembered where there are many."""
    place = cache.folder()
    file = None if place is None else place / cache.file_name(_title(root), _digest(root), listing=True)
    remembered = load(file, root, folders)
    if remembered is not None:
        return remembered
    started = time.time()
    files, visited = scan.class_files(root, folders)
    if file is not None and len(files) >= WORTH_KEEPING:
        save(file, files, folders, visited, started)
    return files


def load(file: Path | None, root: Path, folders: Sequence[str]) -> Files | None:
    """The cached listing, or None where there is none, it is damaged, or a folder has changed since."""
    tensors = cache.read(file)
    if file is None or tensors is None:
        return None
    try:
        kept = {name: tensor.numpy() for name, tensor in tensors.items()}
        if any(kept[name].dtype != np.uint8 for name in ("names", "folders", "visited", "others")):
            return None  # bytes read as anything else hide zeros
        names, labels = kept["names"].view(f"S{kept['names'].shape[1]}")[:, 0], kept["labels"].astype(np.int64)
        visited = kept["visited"].tobytes().split(b"\0")
        same = kept["folders"].tobytes() == _joined(folders) and np.array_equal(kept["times"], _times(root, visited))
        zeros = kept["names"][:, :-1] == 0  # only behind a name
        if (zeros & (kept["names"][:, 1:] != 0)).any():
            return None
        others = {str(ending): int(count) for ending, count in json.loads(kept["others"].tobytes()).items()}
        fits = len(names) == len(labels) and bool(((labels >= 0) & (labels < len(folders))).all())
    except Exception:  # noqa: BLE001 - another version's, or a folder is gone: whatever it is, folders are listed anew
        return None
    if not same or not fits:
        return None
    return Files(root=root, names=names, labels=labels, others=others)


def save(file: Path, files: Files, folders: Sequence[str], visited: Sequence[bytes], started: float) -> None:
    """Caches a listing that was begun at `started`, unless a folder was changed at about that time."""
    import torch

    try:
        times = _times(files.root, visited)
    except OSError:
        return
    if times.max() > (started - SETTLED) * 1e9:
        return
    names = np.ascontiguousarray(files.names)
    arrays = {
        "names": names.view(np.uint8).reshape(len(names), -1),
        "labels": files.labels.astype(np.int32),
        "folders": np.frombuffer(_joined(folders), dtype=np.uint8),
        "visited": np.frombuffer(b"\0".join(visited), dtype=np.uint8),
        "times": times,
        "others": np.frombuffer(json.dumps(dict(files.others)).encode(), dtype=np.uint8),
    }
    cache.write(file, {name: torch.tensor(array) for name, array in arrays.items()})


def _title(root: Path) -> str:
    return f"{root.parent.name}-{root.name}"


def _digest(root: Path) -> str:
    known = f"{VERSION} {' '.join(scan.EXTENSIONS)} {root.resolve()}"
    return hashlib.blake2b(known.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def _joined(folders: Sequence[str]) -> bytes:
    return b"\0".join(os.fsencode(folder) for folder in folders)


def _times(root: Path, visited: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """(N, 2) times of change of each folder's content and of its inode; the second cannot be set back."""
    found = [os.stat(os.path.join(os.fsencode(root), folder)) for folder in visited]
    return np.array([(status.st_mtime_ns, status.st_ctime_ns) for status in found], dtype=np.int64)
