"""Runs cells in processes of their own, as many at a time as memory and cores allow."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from starfire_cli.errors import StarfireError
from starfire_cli.records.compare import CellDone, CellFailed, CellProgress, CompareNote
from starfire_cli.text import printable
from starfire_cli.workflows.compare.cell import CellJob
from starfire_cli.workflows.compare.folder import CompareFolder
from starfire_cli.workflows.compare.memory import available_memory, cores
from starfire_cli.workflows.train.signals import Signals

PoolRecord = CellProgress | CompareNote | CellDone | CellFailed

_SPARE = 1.2  # times a cell's peak has to be free before another one starts
_ROOT = Path(__file__).resolve().parents[3]
_LOOK = 0.2  # seconds between looks for a signal


def run_pool(jobs: Sequence[CellJob], limit: int | None, signals: Signals) -> Generator[PoolRecord, None, None]:
    """Run the jobs in order and yield what happens; after a signal, let those under way save, and return.

    Args:
        jobs: one a cell.
        limit: how many at a time; None for what memory and cores allow, once the first cell has shown its peak.
        signals: noted by the caller; the processes do not get a terminal's Ctrl-C themselves.
    """
    pool = _Pool(jobs, limit)
    try:
        yield from pool.run(signals)
    finally:
        pool.kill()


class _Worker:
    """One process.

    Args:
        job: what it does.
        threads: of its computations.
        messages: where (itself, message) goes; None is the end of it.
    """

    def __init__(
        self, job: CellJob, threads: int, messages: queue.Queue[tuple[_Worker, dict[str, Any] | None]]
    ) -> None:
        self.job, self.reported, self.ended = job, False, False
        self.problem: str | None = None
        self._messages = messages
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        env = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"PYTHONPATH": path}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "starfire_cli.workflows.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended; its exit code tells
            self.process.stdin.write(json.dumps(job.as_plain()).encode() + b"\n")
            self.process.stdin.flush()
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        """Let it save and end."""
        with contextlib.suppress(OSError):
            if sys.platform == "win32" and self.process.stdin is not None:  # where SIGTERM ends a process unheard
                self.process.stdin.close()
            else:
                self.process.send_signal(signal.SIGTERM)

    def why(self) -> str:
        """The reason of its end, where it gave none itself."""
        self._errors.seek(0)
        lines = [line for line in self._errors.read()[-4000:].decode(errors="replace").splitlines() if line.strip()]
        last = f": {printable(lines[-1], 300)}" if lines else ""
        code = self.process.returncode
        if code == -9:  # SIGKILL, a name that Windows lacks
            return f"its process was killed (out of memory?); fewer --jobs need less{last}"
        return f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}{last}"

    def close(self) -> None:
        """Let go of its streams."""
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                with contextlib.suppress(ValueError):
                    self._messages.put((self, json.loads(line)))
        self.process.wait()
        self._messages.put((self, None))


class _Pool:
    def __init__(self, jobs: Sequence[CellJob], limit: int | None) -> None:
        self._waiting, self._limit = deque(jobs), limit
        self._running: list[_Worker] = []
        self._messages: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self._peak = 0  # bytes, of any cell
        self._gpu: tuple[int, int] | None = None  # (the most that a cell took, what was free last)

    def run(self, signals: Signals) -> Iterator[PoolRecord]:
        stopping = False
        while self._running or (self._waiting and not stopping):
            if signals.number and not stopping:
                stopping = True
                for worker in self._running:
                    worker.stop()
            while self._waiting and not stopping and len(self._running) < self._room():
                self._running.append(self._start(self._waiting.popleft()))
            try:
                worker, message = self._messages.get(timeout=_LOOK)
            except queue.Empty:
                continue
            yield from self._handle(worker, message, stopping)

    def kill(self) -> None:
        """End what is still running; what was saved before stays whole."""
        for worker in self._running:
            with contextlib.suppress(OSError):
                worker.process.kill()
                worker.process.wait()
            worker.close()
        self._running.clear()

    def _room(self) -> int:
        """The number of processes that may run now."""
        if self._limit is not None:
            return self._limit
        running = len(self._running)
        free = available_memory()
        if not self._peak or free is None:
            return 1
        growing = sum(not worker.reported for worker in self._running)  # which have their peak still before them
        room = int((free - growing * self._peak) / (_SPARE * self._peak))
        if self._gpu is not None:
            own, left = self._gpu
            room = min(room, int((left - growing * own) / (_SPARE * own)))
        return min(cores(), running + max(0, room))

    def _start(self, job: CellJob) -> _Worker:
        # A cell that was cut off goes on with as many threads, so that it ends in the same bits.
        own = None
        with contextlib.suppress(StarfireError):
            hardware = job.run.read_config().get("hardware")
            own = hardware.get("threads") if isinstance(hardware, dict) else None
        at_a_time = self._limit or min(cores(), len(self._waiting) + len(self._running) + 1)
        threads = own if isinstance(own, int) and 0 < own <= cores() else max(1, cores() // at_a_time)
        return _Worker(job, threads, self._messages)

    def _handle(self, worker: _Worker, message: dict[str, Any] | None, stopping: bool) -> Iterator[PoolRecord]:
        cell = worker.job.cell
        if message is None:
            self._running.remove(worker)
            if not worker.ended and not stopping:
                yield CellFailed(cell=cell, problem=worker.problem or worker.why())
            worker.close()
            return
        kind = message.get("kind")
        if kind == "progress":
            self._note_memory(worker, message["memory"], message["gpu"])
            done, total, text = (message[key] for key in ("done", "total", "text"))
            yield CellProgress(cell=cell, done=done, total=total, text=text, memory=message["memory"])
        elif kind == "note":
            yield CompareNote(text=str(message["text"]))
        elif kind == "stopped":
            worker.problem = f"its process was stopped by signal {message['signal']}, and has saved"
        elif kind == "failed":
            worker.problem = str(message["problem"])
        elif kind == "done":
            self._note_memory(worker, message["memory"], message["gpu"])
            figures = CompareFolder(worker.job.folder).read_figures(cell, worker.job.checkpoint)
            if figures is not None:
                worker.ended = True
                yield CellDone(cell=cell, figures=figures)

    def _note_memory(self, worker: _Worker, memory: int | None, gpu: Sequence[int] | None) -> None:
        if memory is not None:
            worker.reported = True
            self._peak = max(self._peak, memory)
        if gpu is not None:
            own, free = gpu
            self._gpu = (max(own, self._gpu[0] if self._gpu else 0), free)
