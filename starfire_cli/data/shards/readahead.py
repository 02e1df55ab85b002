"""Reads ahead of the workers in shards: long runs from a disk, whole shards from a server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import numpy as np

from starfire_cli.data.draws import Ints
from starfire_cli.data.shards.layout import AT_ONCE, Shards
from starfire_cli.data.shards.spool import Spool
from starfire_cli.data.source import Encoded

STRIDE = 2**19  # bytes asked for at a time: kernels cut longer requests short
AHEAD = 128 * 2**20  # bytes of images that are asked for before they are needed
MARGIN = 64  # requests that workers may be ahead of what was delivered

T = TypeVar("T")


class ReadAhead:
    """Reads ahead for requests that are answered in order; for files in folders it does nothing.

    Args:
        files: where the images lie.
        requests: (epoch, positions) each.
    """

    def __init__(self, files: Encoded, requests: Sequence[tuple[int, Ints]]) -> None:
        self._shards = files if isinstance(files, Shards) and len(requests) else None
        self._requests = requests
        self._asked: set[tuple[int, int]] = set()
        self._next = 0
        self._ended = Event()
        self._pool: ThreadPoolExecutor | None = None
        self._first = self._last = self._turns = np.zeros(0, dtype=np.int64)

    def begin(self) -> None:
        """Starts reading ahead; only after workers were forked, since threads do not survive a fork."""
        if self._shards is None:
            return
        if self._shards.spool is not None:
            self._first, self._last = self._needed(self._shards)
            self._turns = np.argsort(self._first, kind="stable")[: int((self._first < len(self._requests)).sum())]
            self._pool = self._shards.spool.executor(AT_ONCE)
        elif hasattr(os, "posix_fadvise"):
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="starfire-ahead")
        self._advance(0)

    def through(self, answers: Iterator[T]) -> Iterator[T]:
        """Passes the answers on, one a request, while later requests are read ahead."""
        try:
            for done, answer in enumerate(answers):
                self._advance(done + 1)
                yield answer
        finally:
            self.end()

    def end(self) -> None:
        """Stops reading ahead."""
        self._ended.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _needed(self, shards: Shards) -> tuple[Ints, Ints]:
        """(M,) the first and the last request that needs each shard; where none does, their number and -1."""
        counts = [len(positions) for _, positions in self._requests]
        request = np.repeat(np.arange(len(counts)), counts)
        shard = shards.shard[np.concatenate([positions for _, positions in self._requests])]
        first, last = np.full(len(shards.places), len(counts)), np.full(len(shards.places), -1)
        np.minimum.at(first, shard, request)
        np.maximum.at(last, shard, request)
        return first, last

    def _advance(self, request: int) -> None:
        if self._pool is None or self._shards is None or request >= len(self._requests):
            return
        if self._shards.spool is not None:
            self._fetch_shards(self._pool, self._shards.spool, request)
            return
        reach = len(self._requests[request][1]) * int(self._shards.size[: 2**16].mean())
        while self._next < len(self._requests) and (self._next - request) * max(1, reach) < AHEAD:
            self._prefetch(self._pool, self._shards, self._requests[self._next][1])
            self._next += 1

    def _prefetch(self, pool: ThreadPoolExecutor, shards: Shards, positions: Ints) -> None:
        begin, end = shards.offset[positions], shards.offset[positions] + shards.size[positions] - 1
        both = np.concatenate([begin, end]) // STRIDE
        wanted = set(zip(np.tile(shards.shard[positions], 2).tolist(), both.tolist(), strict=True)) - self._asked
        self._asked |= wanted
        if wanted:
            pool.submit(self._advise, shards, sorted(wanted))

    def _fetch_shards(self, pool: ThreadPoolExecutor, spool: Spool, request: int) -> None:
        """Fetches the shards of the next requests, and as many more as are read side by side."""
        begun = int((self._first <= request + MARGIN).sum())
        wanted = self._turns[: begun + AT_ONCE].tolist()
        new = wanted[self._next :]
        if new:
            in_use = {shard for shard in wanted if self._last[shard] >= request - 1}
            spool.make_room(in_use)
            for shard in new:
                pool.submit(spool.fetch, shard, self._ended)
            self._next = len(wanted)

    def _advise(self, shards: Shards, wanted: list[tuple[int, int]]) -> None:
        for shard, stride in wanted:
            if self._ended.is_set():
                return
            with contextlib.suppress(OSError):  # whoever reads it will say so
                descriptor = os.open(shards.places[shard], os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, stride * STRIDE, STRIDE, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)


@contextlib.contextmanager
def read_ahead(files: Encoded, positions: list[int]) -> Iterator[None]:
    """Makes these images readable in this process within the block."""
    reading = ReadAhead(files, [(0, np.array(positions, dtype=np.int64))])
    try:
        reading.begin()
        yield
    finally:
        reading.end()
