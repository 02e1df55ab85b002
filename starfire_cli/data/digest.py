"""Digests of a data set, by which the ranks of a job check that they all see the same images.

They cost milliseconds: names, labels and known sizes are taken whole, of pixels and files a fixed sample.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from starfire_cli.data.draws import Ints
from starfire_cli.data.shards.layout import Shards
from starfire_cli.data.source import Encoded

PIXELS = 2**20  # bytes of decoded images that are looked at, spread evenly over all of them
SIZES = 512  # files whose size is asked for
CONTENTS = 16  # files, or members of shards, that are read


def of_pixels(images: Tensor, labels: Tensor) -> dict[str, str]:
    """Digests of decoded images, uint8 (N, 3, S, S), and labels, (N,)."""
    flat = images.reshape(-1)
    stride = max(1, -(-len(flat) // PIXELS)) | 1  # odd, so that it does not stay in one column or channel
    return {
        "labels": _digest([labels.cpu().numpy().tobytes()]),
        "pixels": _digest([f"{tuple(images.shape)}".encode(), flat[::stride].cpu().contiguous().numpy().tobytes()]),
    }


def of_files(files: Encoded) -> dict[str, str]:
    """Digests of images not decoded yet; independent of where folders and servers put them."""
    found = {"labels": _digest([files.labels.tobytes()])}
    if isinstance(files, Shards):
        places = np.stack([files.shard.astype(np.int64), files.offset, files.size])
        found["places in the shards"] = _digest([files.lengths.tobytes(), places.tobytes()])
        if files.spool is not None:
            return found | {"shards' checksums": _digest(name.encode() for name in files.spool.checksums)}
    else:
        found["names"] = _digest([files.names.tobytes()])
        found["sizes"] = _digest(str(_size(files.path(place))).encode() for place in _spread(len(files), SIZES))
    return found | {"content": _digest(_content(files, place) for place in _spread(len(files), CONTENTS))}


def _spread(count: int, most: int) -> Ints:
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _content(files: Encoded, place: int) -> bytes:
    try:
        return files.read(int(place))
    except OSError as error:  # whoever needs it will say so
        return str(error.errno).encode()


def _digest(parts: Iterable[bytes]) -> str:
    made = hashlib.blake2b(digest_size=6)
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.hexdigest()
