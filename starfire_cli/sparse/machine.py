"""The virtual machine that runs the loops: any number of threads on one image, or each thread on images of its own.

A program is a row of steps. Of a step's tasks each thread has a share of its own, the same part of the map in every
step, so that what it wrote last is what it reads next; when its share is done it takes from the others'. A thread goes
on to the next step when all tasks of the step before are done, by whomever: no step waits for a thread that has not
come yet.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from starfire_cli.sparse import compiler
from starfire_cli.sparse.emit import Code
from starfire_cli.sparse.loops import FIELDS

Longs = npt.NDArray[np.int64]
_WIDE = 4  # i64 of each step, in the table that the runner reads
_LINE = 16  # i64 that two cache lines hold: counters that threads write lie so far apart
_SIGNATURE = (*([ctypes.c_void_p] * 2), ctypes.c_int64, *([ctypes.c_void_p] * 4), *([ctypes.c_int64] * 2))
_SPINS = 2000  # looks at a counter before the processor is offered to others


@dataclass(frozen=True, kw_only=True)
class Step:
    """A loop, its arguments and its number of tasks.

    Args:
        code: of the loop.
        values: its arguments by the names in `loops.FIELDS`; tables are arrays. Those that are missing are zero.
        tasks: how many.
        grain: tasks that are taken at a time.
    """

    code: Code
    values: Mapping[str, Any]
    tasks: int
    grain: int

    def args(self) -> Longs:
        """One int64 for each of `loops.FIELDS`; tables by their address, for as long as the step is there."""
        found = np.zeros(len(FIELDS), np.int64)
        for name, value in self.values.items():
            found[FIELDS.index(name)] = value.ctypes.data if isinstance(value, np.ndarray) else value
        return found


class CompiledLoops:
    """Compiled loops one after the other, ready to run.

    Args:
        rows: of each loop the address of its code, that of its arguments, its tasks, and those taken at a time.
    """

    def __init__(self, rows: Sequence[tuple[int, int, int, int]]) -> None:
        self._table = np.array(rows, np.int64).reshape(-1, _WIDE)
        self._run = ctypes.CFUNCTYPE(None, *_SIGNATURE)(_runner())
        self._offer = ctypes.cast(_offer(), ctypes.c_void_p).value

    def run_one(self, passing: int, kept: int, image: int, threads: int) -> None:
        """Run one image by `threads` threads together.

        Args:
            passing: address of memory for what is needed on the way.
            kept: address of this image's other maps.
            image: address of its pixels.
            threads: how many, this one included.
        """
        state = self._counters(threads)
        call = (self._table.ctypes.data, state.ctypes.data, len(self._table), passing, kept, image, self._offer)
        _together(self._run, [(*call, t, threads) for t in range(threads)])

    def _counters(self, threads: int) -> Longs:
        """For each step the tasks that are done, and the tasks taken of each thread's share."""
        return np.zeros((1 + threads) * _LINE * max(1, len(self._table)), np.int64)

    def run_many(self, passing: Sequence[int], kept: Sequence[int], images: Sequence[int]) -> None:
        """Run images side by side, as many at a time as `passing` has addresses; the others are of each image."""
        todo = count()

        def work(memory: int) -> None:
            state = self._counters(1)
            fixed = (self._table.ctypes.data, state.ctypes.data, len(self._table), memory)
            while (i := next(todo)) < len(kept):
                state.fill(0)
                self._run(*fixed, kept[i], images[i], self._offer, 0, 1)

        _together(work, [(memory,) for memory in passing])


class Program(CompiledLoops):
    """Steps one after the other, ready to run.

    Args:
        steps: in order.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self._args = [step.args() for step in self.steps]
        super().__init__(
            [
                (compiler.compiled(step.code.text()), args.ctypes.data, step.tasks, step.grain)
                for step, args in zip(self.steps, self._args, strict=True)
            ]
        )


def in_threads(code: Code, args: Longs, tasks: int, threads: int) -> None:
    """The tasks of one loop that uses no maps, shared out evenly."""
    kind = ctypes.CFUNCTYPE(None, *([ctypes.c_void_p] * 4), ctypes.c_int64, ctypes.c_int64)
    ends = [tasks * t // threads for t in range(threads + 1)]
    calls = [(args.ctypes.data, None, None, None, ends[t], ends[t + 1]) for t in range(threads)]
    _together(kind(compiler.compiled(code.text())), calls, all_needed=True)


def threads() -> int:
    """The number of threads that torch uses."""
    return torch.get_num_threads()


def _together(work: Callable[..., None], calls: Sequence[tuple[Any, ...]], *, all_needed: bool = False) -> None:
    """Run `work` with each of `calls` as its arguments, the first in this thread and the others beside it.

    Args:
        work: what each thread does.
        calls: of as many threads.
        all_needed: whether calls that have not begun when the first one is done must be made: they have work of their
            own, while others find all of it done.
    """
    helpers = [_pool(os.getpid(), len(calls) - 1).submit(work, *call) for call in calls[1:]]
    try:
        work(*calls[0])
    finally:
        for helper in helpers:
            if all_needed or not helper.cancel():
                helper.result()


@lru_cache(maxsize=4)
def _pool(process: int, helpers: int) -> ThreadPoolExecutor:
    """A thread pool; after a fork the child gets its own."""
    return ThreadPoolExecutor(max(1, helpers), thread_name_prefix="starfire-sparse")


@lru_cache(maxsize=1)
def _offer() -> Any:
    """The system's function that yields the processor to other threads."""
    return ctypes.windll.kernel32.SwitchToThread if os.name == "nt" else ctypes.CDLL(None).sched_yield  # type: ignore[attr-defined,unused-ignore]


@lru_cache(maxsize=1)
def _runner() -> int:
    """The machine code of
    `void f(ptr table, ptr state, i64 steps, ptr passing, ptr kept, ptr image, ptr offer, i64 own, i64 threads)`.
    """
    start = """define void @f(ptr %table, ptr %state, i64 %steps, ptr %passing, ptr %kept, ptr %image, ptr %offer,
               i64 %own, i64 %threads) nounwind {"""
    work = """  %function = load ptr, ptr %p
  %p1 = getelementptr i64, ptr %p, i64 1
  %args = load ptr, ptr %p1
  call void %function(ptr %args, ptr %passing, ptr %kept, ptr %image, i64 %begin, i64 %end)"""
    return compiler.compiled(shared_run(start, work, offer="%offer"))


def shared_run(start: str, work: str, offer: str) -> str:
    """A function that runs a program in one of several threads, as assembly.

    Args:
        start: its head, with the arguments %table (rows of `_WIDE` i64, of which the third is the number of tasks and
            the fourth the grain), %state (counters, zero at first), i64 %steps, i64 %own, which thread it is, and i64
            %threads; and whatever `work` needs.
        work: what does the tasks from i64 %begin to %end of the step i64 %s, whose row is at %p.
        offer: the function that yields the processor.
    """
    return f"""
{start}
entry:
  %counters = add i64 %threads, 1
  %wide = mul i64 %counters, {_LINE}
  br label %next
next:
  %s = phi i64 [0, %entry], [%s1, %wait]
  %more = icmp slt i64 %s, %steps
  br i1 %more, label %step, label %done
step:
  %row = mul i64 %s, {_WIDE}
  %p = getelementptr i64, ptr %table, i64 %row
  %p2 = getelementptr i64, ptr %p, i64 2
  %tasks = load i64, ptr %p2
  %p3 = getelementptr i64, ptr %p, i64 3
  %grain = load i64, ptr %p3
  %ofs = mul i64 %s, %wide
  %ready = getelementptr i64, ptr %state, i64 %ofs
  br label %take
take:
  %others = phi i64 [0, %step], [%others, %work], [%others1, %theirs]
  %sum = add i64 %own, %others
  %share = urem i64 %sum, %threads
  %share1 = add i64 %share, 1
  %lower = mul i64 %tasks, %share
  %from = udiv i64 %lower, %threads
  %upper = mul i64 %tasks, %share1
  %last = udiv i64 %upper, %threads
  %place = mul i64 %share1, {_LINE}
  %taken = getelementptr i64, ptr %ready, i64 %place
  %at = atomicrmw add ptr %taken, i64 %grain monotonic
  %begin = add i64 %from, %at
  %some = icmp slt i64 %begin, %last
  br i1 %some, label %work, label %theirs
work:
  %upto = add i64 %begin, %grain
  %fits = icmp slt i64 %upto, %last
  %end = select i1 %fits, i64 %upto, i64 %last
{work}
  %did = sub i64 %end, %begin
  %before = atomicrmw add ptr %ready, i64 %did acq_rel
  br label %take
theirs:
  %others1 = add i64 %others, 1
  %left = icmp slt i64 %others1, %threads
  br i1 %left, label %take, label %wait
wait:
  %spins = phi i64 [0, %theirs], [%spins1, %look]
  %is = load atomic i64, ptr %ready acquire, align 8
  %all = icmp sge i64 %is, %tasks
  %s1 = add i64 %s, 1
  br i1 %all, label %next, label %idle
idle:
  %spins1 = add i64 %spins, 1
  %long = icmp sgt i64 %spins1, {_SPINS}
  br i1 %long, label %other, label %look
other:
  %ignored = call i32 {offer}()
  br label %look
look:
  br label %wait
done:
  ret void
}}
"""


def addresses(memory: torch.Tensor) -> Iterator[int]:
    """The addresses of an array's rows."""
    return (memory.data_ptr() + i * memory.stride(0) * memory.element_size() for i in range(len(memory)))
