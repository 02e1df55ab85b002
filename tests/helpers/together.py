"""Several ranks in a test: processes forked from it, with the variables that torchrun sets."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest

PLAIN = {
    "model": "tests.tiny:plain",
    "limit_train": 322,  # five batches of 64 and one of 2: with three ranks, a share of nothing
    "limit_val": 101,
    "device": "cpu",
    "workers": 0,
    "batch_size": 64,
    "epochs": 3,
    "era": "0.5:2",
    "lr": 0.05,
}


def together(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` returns on each of `count` ranks: plain values. An exception on one comes back as its text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is imported already
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [context.Process(target=_rank, args=(r, count, port, pipes[r][1], work, args)) for r in range(count)]
    for process in processes:
        process.start()
    found = [_answer(pipe, process) for (pipe, _), process in zip(pipes, processes, strict=True)]
    for process in processes:
        process.join(60)
        process.kill()
    return found


def _answer(pipe: Any, process: Any) -> Any:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        over = not process.is_alive()
        if pipe.poll(0 if over else 0.05):
            return pipe.recv()
        if over:
            return f"exit code {process.exitcode}"
    return "no answer"


def _rank(rank: int, count: int, port: int, pipe: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        pipe.send(work(*args))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test shall see it
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")
    pipe.close()
    os._exit(0)  # what else pytest had to do at its end, the parent does


def run(out: Path, ranks: int = 1, **more: Any) -> list[str]:
    """Train with `more` options on so many ranks; what each yields, in words."""
    if ranks == 1:
        return [_trained(out, more)]
    return together(ranks, _trained, out, more)


def _trained(out: Path, more: dict[str, Any]) -> str:
    given = frozenset(more) | {"model"} if "resume" in more else frozenset()
    request = TrainRequest(**({"model": PLAIN["model"]} if "resume" in more else PLAIN) | more | {"out": out})
    names = [type(record).__name__ for record in train(request, given)]
    return " ".join(name for name in names if name != "StepRecord")  # these come by the clock
