"""Shared memory for the images that worker processes decode, and the error when there is too little of it.

PyTorch puts what a worker returns into /dev/shm, which is 64 MB in a Docker container. On Linux, images are decoded
into anonymous memory files instead, which only the machine's memory (and a container's limit of it) bounds; a copy is
saved, too. /dev/shm still holds the locks of the queues, a page each.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import sys
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from starfire_cli.errors import StarfireError

SHM = "/dev/shm"
# torch's words, DataLoader's, NCCL's; not those of kernels that ask for too much of a GPU's shared memory.
_SAYS_FULL = re.compile(
    r"shared memory ?\(shm\)|shared memory segment|out of shared memory|/dev/shm|</torch_|Bus error"
)


def empty_batch(images: int, side: int, *, shared: bool) -> tuple[Tensor, Tensor]:
    """Memory for a batch: uint8 images (B, 3, side, side), channels innermost, and int64 labels (B,).

    Args:
        images: B.
        side: in pixels.
        shared: whether another process is to have it without a copy.

    Raises StarfireError where there is no shared memory for it.
    """
    shape, strides = (images, 3, side, side), (3 * side * side, 1, 3 * side, 3)
    storage = _storage(8 * images + 3 * images * side * side) if shared else None
    if storage is None:
        return torch.empty_strided(shape, strides, dtype=torch.uint8), torch.empty(images, dtype=torch.int64)
    labels = torch.empty(0, dtype=torch.int64).set_(storage, 0, (images,), (1,))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 8 * images, shape, strides), labels


def _storage(size: int) -> torch.UntypedStorage | None:
    """Shared memory of `size` bytes; None for 0 bytes. Raises StarfireError where memory is used up."""
    if not size:
        return None
    storages: Any = torch.UntypedStorage  # whose stub lacks what follows
    descriptor = _memory_file(size)
    try:
        shared: torch.UntypedStorage = (
            storages(size).share_memory_()
            if descriptor is None
            else storages._new_shared_fd_cpu(descriptor, size)  # maps a duplicate of the descriptor
        )
        return shared
    except (RuntimeError, OSError) as error:
        raise shared_memory_error(error, size) from None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _memory_file(size: int) -> int | None:
    """A file in memory that has no name and no place in /dev/shm; None where the system has none."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        descriptor = os.memfd_create("starfire-batch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None


def check_locks(count: int) -> None:
    """Raises StarfireError where /dev/shm has no room for so many locks, which processes need to talk to each other.

    Asked beforehand, because a queue that is half made cannot be told apart from a full disk.
    """
    try:
        for lock in [multiprocessing.Lock() for _ in range(count)]:
            del lock
    except OSError as error:
        raise (error if error.errno in (errno.EMFILE, errno.ENFILE) else shared_memory_error(error)) from None


def is_shared_memory_error(error: BaseException) -> bool:
    """Whether an error of torch, NCCL or the operating system means that shared memory is used up or missing."""
    return isinstance(error, RuntimeError | OSError) and bool(_SAYS_FULL.search(str(error)))


def shared_memory_error(error: BaseException, size: int = 0) -> StarfireError:
    """The error for the user where shared memory is used up: its size, and how to get more.

    Args:
        error: what the system or torch has said.
        size: bytes asked for, where known.
    """
    needed = f", and a batch takes {size / 1e6:,.0f} MB" if size >= 1e6 else ""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:160]
    who, without = ("NCCL needs", "NCCL_SHM_DISABLE=1") if "NCCL" in str(error) else ("Workers need", "--workers 0")
    return StarfireError(
        f"shared memory is full: {_state()}{needed} ({reason}). {who} it; "
        f"docker run --shm-size 1g (or --ipc host) gives more, {without} does without"
    )


def _state() -> str:
    try:
        use = shutil.disk_usage(SHM)
    except OSError as error:
        return f"{SHM} cannot be used ({error.strerror})"
    return f"{SHM} has {use.total / 2**20:,.0f} MB, of which {use.free / 2**20:,.0f} MB are free"
