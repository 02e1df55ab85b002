"""Runs small pieces of work that release the GIL in as many threads as torch uses, in torch's own threads where
possible.

An OpenMP thread that has just computed for torch goes on spinning for milliseconds in the hope of more. Other threads
would have to share their cores with such; the same threads are at it at once.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_WORTH_IT = 1 << 18  # weights; waking a thread takes as long as these
_HERE = threading.local()  # has `busy` where tasks are being run
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()  # a forked child of it has none of its OpenMP threads
_ONE = threading.Lock()  # while one calls the team


def in_threads(tasks: Sequence[tuple[int, Callable[[], T]]]) -> list[T]:
    """Run tasks, each with what it costs, and return what they return, in order; whoever is free takes the costliest.

    Called from within a task, all is done in the task's own thread: were it to wait for the threads it is one of, it
    might wait forever. What a task raises is raised once all others are done or have not been begun.
    """
    threads = min(len(tasks), torch.get_num_threads())
    if threads < 2 or hasattr(_HERE, "busy") or sum(cost for cost, _ in tasks) < _WORTH_IT:
        return [task() for _, task in tasks]
    waiting = deque(sorted(range(len(tasks)), key=lambda i: -tasks[i][0]))
    results: dict[int, T] = {}
    failures: list[BaseException] = []
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def work(_: object = None) -> None:
        try:
            _HERE.busy = True
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):  # the caller's
                while waiting and not failures:
                    try:
                        number = waiting.popleft()
                    except IndexError:  # another was faster
                        return
                    results[number] = tasks[number][1]()
        except BaseException as failure:  # noqa: BLE001 - in a thread of OpenMP's nobody above would see it
            failures.append(failure)
        finally:
            vars(_HERE).pop("busy", None)

    team = _team() if os.getpid() == _PROCESS else None
    if team is not None:  # all of its threads: a smaller team would end the others, and torch begin new ones
        with _heeding(failures):
            team(_CALLBACK(work), None, torch.get_num_threads(), 0)
        vars(_HERE).pop("busy", None)  # should an interrupt have kept `work` from it
    else:
        others = [_pool(os.getpid(), threads - 1).submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()
    if failures:
        raise failures[0]
    return [results[number] for number in range(len(tasks))]


@contextmanager
def _heeding(failures: list[BaseException]) -> Iterator[None]:
    """Report an exception raised in a callback's first instant, as by an interrupt, which ctypes would drop."""
    caller = threading.get_ident()

    def note(dropped: Any) -> None:
        if threading.get_ident() == caller and "ctypes callback" in (dropped.err_msg or ""):
            failures.append(dropped.exc_value or dropped.exc_type())
        else:
            before(dropped)

    with _ONE:
        before, sys.unraisablehook = sys.unraisablehook, note
        try:
            yield
        finally:
            sys.unraisablehook = before


@lru_cache(maxsize=1)
def _team() -> Callable[..., None] | None:
    """`GOMP_parallel` of the library whose threads are torch's: (function, its argument, threads, flags) -> None.

    None where torch computes with another library, or none.
    """
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        try:
            parallel = ctypes.CDLL(str(path), os.RTLD_NOLOAD).GOMP_parallel  # another copy would have other threads
        except (OSError, AttributeError):
            continue
        parallel.argtypes, parallel.restype = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return parallel
    return None


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """A thread pool; after a fork the child gets its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="starfire")
