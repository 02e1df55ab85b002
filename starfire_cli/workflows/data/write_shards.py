"""Writes many shards in parallel; a worker that dies or a full disk costs only the unfinished shards."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starfire_cli.damage import Damaged, DamagedFile, reading
from starfire_cli.data.draws import Ints
from starfire_cli.data.images import decode, sharing
from starfire_cli.data.images.encode import shrink_image
from starfire_cli.data.shards import index
from starfire_cli.data.source import Encoded
from starfire_cli.errors import StarfireError
from starfire_cli.formats.atomic import write_text
from starfire_cli.formats.shards import Sample, write_shard


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to be written: its images, its path, and its record's path."""

    files: Encoded
    positions: Ints
    path: Path
    record: Path
    short_side: int
    quality: int
    skip_corrupt: bool


def is_done(task: Task) -> bool:
    """Whether the shard on the disk matches its record; a damaged record counts as none."""
    try:
        return task.path.stat().st_size == int(record_of(task)["bytes"])
    except (OSError, DamagedFile):
        return False


def record_of(task: Task) -> dict[str, Any]:
    """The record of a written shard. Raises OSError, DamagedFile."""
    content = task.record.read_bytes()
    with reading(task.record):
        record: dict[str, Any] = json.loads(content)
        np.array([tuple(row) for row in record["members"]], dtype=index.MEMBER)
        if not isinstance(record["bytes"], int) or not all(
            isinstance(text, str) for text in (record["sha256"], *record["skipped"])
        ):
            raise Damaged("names are expected")
        return record


def write_shards(tasks: list[Task], workers: int) -> Iterator[Task]:
    """Writes the shards in worker processes; yields each when done. Raises StarfireError; whole shards stay."""
    global _todo
    _todo = tasks
    if workers == 1 or len(tasks) < 2:
        for number in range(len(tasks)):
            _raise(_write(number))
            yield tasks[number]
        return
    sharing.check_locks(workers + 8)
    forking = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if forking else None)
    pool = ProcessPoolExecutor(
        workers, context, initializer=_init_worker, initargs=(os.getpid(), None if forking else tasks)
    )
    try:
        writing = {pool.submit(_write, number): tasks[number] for number in range(len(tasks))}
        for future in as_completed(writing):
            _raise(future.result())
            yield writing[future]
    except BrokenProcessPool:
        raise StarfireError(
            "a process that writes shards has died (killed, or out of memory); fewer --workers need less, "
            "and the same command goes on where it was"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_todo: list[Task] = []  # forked workers find the list here; a million names need not go through pipes


def _init_worker(parent: int, tasks: list[Task] | None) -> None:
    """Sets up a worker: the parent handles Ctrl-C, and the worker ends with its parent."""
    import torch

    global _todo
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if tasks is not None:
        _todo = tasks


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise StarfireError(problem)


def _write(number: int) -> str | None:
    """Writes one shard and its record; returns errors as values, which cross processes."""
    task = _todo[number]
    skipped: list[str] = []
    try:
        shard = write_shard(task.path, _samples(task, skipped))
        content = {"bytes": shard.bytes, "sha256": shard.sha256, "members": shard.members, "skipped": skipped}
        write_text(task.record, json.dumps(content))
    except StarfireError as error:
        return str(error)
    return None


def _samples(task: Task, skipped: list[str]) -> Iterator[Sample]:
    for position in task.positions.tolist():
        found = _make_sample(task, position)
        if isinstance(found, Sample):
            yield found
            continue
        # Not raised where the image was read: writers take any OSError behind an error for one of the disk.
        if not task.skip_corrupt:
            raise StarfireError(f"corrupt image {found}; --skip-corrupt goes on without it")
        skipped.append(found)


def _make_sample(task: Task, position: int) -> Sample | str:
    """The sample for the shard, or the corrupt image's name and reason."""
    files = task.files
    try:
        data = files.read(position)
        ending, content = shrink_image(data, files.where(position), task.short_side, task.quality)
        if content is data:  # so that a corrupt one is found now, and not in an epoch
            with decode.suppress_warnings():
                decode.decode(data)
    except (decode.Corrupt, OSError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        return f"{files.where(position)} ({reason})"
    return Sample(key=position, ending=ending, content=content, label=int(files.labels[position]))
