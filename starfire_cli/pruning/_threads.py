"""Small pieces of work that release Python's lock, in as many threads as torch uses."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")
_WORTH_IT = 1 << 18  # weights; waking a thread takes as long as these
_HERE = threading.local()  # has `busy` where tasks are being run


def in_threads(tasks: Sequence[tuple[int, Callable[[], T]]]) -> list[T]:
    """Run tasks, each with what it costs, and return what they return, in order; the threads share the costs evenly.

    Called from within a task, all is done in the task's own thread: were it to wait for the pool it is part of, it
    might wait forever.
    """
    alone = hasattr(_HERE, "busy") or sum(cost for cost, _ in tasks) < _WORTH_IT
    threads = 1 if alone else torch.get_num_threads()
    shares: list[list[int]] = [[] for _ in range(min(len(tasks), threads))]
    if len(shares) < 2:
        return [task() for _, task in tasks]
    costs = [0] * len(shares)
    for number in sorted(range(len(tasks)), key=lambda i: -tasks[i][0]):  # the largest first, to whom has least
        least = costs.index(min(costs))
        shares[least].append(number)
        costs[least] += tasks[number][0]
    results: dict[int, T] = {}

    def work(share: Sequence[int]) -> None:
        _HERE.busy = True
        try:
            for number in share:
                results[number] = tasks[number][1]()
        finally:
            del _HERE.busy

    waiting = [_pool(os.getpid(), len(shares) - 1).submit(work, share) for share in shares[1:]]
    work(shares[0])
    for future in waiting:
        future.result()
    return [results[number] for number in range(len(tasks))]


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work; after a fork the child gets its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="starfire")
