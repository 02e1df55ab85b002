"""Positions of images in tar shards, and the order in which an epoch reads them.

Shuffling all images of many shards would make a disk or a server jump about. So an epoch shuffles the shards, takes
`AT_ONCE` of them side by side, goes through these from front to back in slices of about `SLICE` bytes, and shuffles the
images of a slice of all of them. Every shard is then read once, from front to back, and the order is a function of
(seed, epoch): not of ranks, workers, or where a run was resumed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from starfire_cli.data.draws import Draws, Ints
from starfire_cli.data.shards.spool import Spool

AT_ONCE = 16  # shards read side by side
SLICE = 32 * 2**20  # bytes of each that are shuffled together: 16 x 32 MB are some 17,000 images of 30 kB
LONGEST = 2**30  # bytes of an image file: more than the largest that are decoded have
_ORDER = 64  # draws from here on decide the order; augmentations use those before


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Images as members of tar files.

    Args:
        places: the files, as paths or URLs.
        lengths: (M,) their sizes in bytes.
        shard: (N,) in which of them an image lies.
        offset: (N,) its first byte there.
        size: (N,) its length in bytes.
        labels: (N,) class numbers.
        spool: brings files that lie elsewhere; None where `places` are paths.
    """

    places: tuple[str, ...]
    lengths: Ints
    shard: npt.NDArray[np.int32]
    offset: Ints
    size: Ints
    labels: Ints
    spool: Spool | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def title(self) -> str:
        """A title for the name of a cache file."""
        return os.path.basename(os.path.dirname(self.places[0])) or "shards"

    def take(self, chosen: npt.NDArray[np.bool_] | Ints) -> Shards:
        """Some of the images: a mask (N,) or positions."""
        return Shards(
            places=self.places,
            lengths=self.lengths,
            shard=self.shard[chosen],
            offset=self.offset[chosen],
            size=self.size[chosen],
            labels=self.labels[chosen],
            spool=self.spool,
        )

    def read(self, position: int) -> bytes:
        """The bytes of an image's file. Raises OSError where they are not there, StarfireError from the spool."""
        shard, offset, size = (int(part[position]) for part in (self.shard, self.offset, self.size))
        check_length(size)
        data = self._file(shard, offset + size).read(offset, size)
        if len(data) < size:
            raise OSError(f"the shard ends after {offset + len(data)} bytes; it was cut off")
        return data

    def _file(self, shard: int, end: int) -> _File:
        """The open file that holds the first `end` bytes of the shard."""
        if self.spool is None:
            return _opened(self.places[shard], os.getpid())
        while True:
            with contextlib.suppress(FileNotFoundError):  # a shard that was whole just then has got another name
                return _opened(self.spool.wait(shard, end), os.getpid())

    def where(self, position: int) -> str:
        """The shard, and the image's offset in it, for messages."""
        return f"{self.places[self.shard[position]]} at byte {self.offset[position]}"

    def stamps(self) -> Iterator[bytes]:
        """Bytes that change when an image may have changed. Raises OSError where a shard is not there."""
        for place, length in zip(self.places, self.lengths, strict=True):
            changed = os.stat(place).st_mtime_ns if self.spool is None else 0
            yield b"%s %d %d\n" % (place.encode("utf-8", "surrogateescape"), length, changed)
        yield np.stack([self.shard, self.offset, self.size]).tobytes()

    def order(self, seed: int, epoch: int) -> Ints:
        """(N,) the positions of all images as an epoch reads them."""
        draws = Draws(seed, epoch, np.arange(len(self)))
        draws.skip(_ORDER)
        block = self._blocks(self._turns(seed, epoch))
        # One sort of one number: the block in the upper 24 bits, 40 random ones below; ties to the first position.
        key = (block.astype(np.uint64) << np.uint64(40)) | (draws.words() >> np.uint64(24))
        return np.argsort(key, kind="stable")

    def _turns(self, seed: int, epoch: int) -> Ints:
        """(M,) the place of each shard in the epoch's order."""
        draws = Draws(seed, epoch, np.arange(len(self.places)))
        draws.skip(_ORDER + 1)
        return np.argsort(np.argsort(draws.words(), kind="stable"), kind="stable")

    def _blocks(self, turns: Ints) -> Ints:
        """(N,) the number of the block that each image is shuffled in: a group of shards, and a slice of these."""
        group = turns // AT_ONCE
        longest = np.zeros(group.max(initial=0) + 1, dtype=np.int64)
        np.maximum.at(longest, group, self.lengths)
        cuts = np.maximum(1, np.rint(longest / SLICE)).astype(np.int64)
        before = np.cumsum(cuts) - cuts
        of_image = group[self.shard]
        # By share of the shard's length, so that a short one is through when the others are.
        cut = self.offset * cuts[of_image] // np.maximum(1, self.lengths[self.shard])
        block: Ints = before[of_image] + np.minimum(cut, cuts[of_image] - 1)
        return block


def check_length(size: int) -> None:
    """Raise OSError for a file that is too long to be an image, before it is read."""
    if size > LONGEST:
        raise OSError(f"{size:,} bytes are too many for an image")


@lru_cache(maxsize=64)
def _opened(path: str, process: int) -> _File:
    """The file, opened in this process: a forked worker must not move its parent's file position."""
    return _File(path)


class _File:
    """An open file that is closed when its last reference goes."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # else it could not be opened
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer where the file ends."""
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, offset)
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        return os.read(self._descriptor, size)
