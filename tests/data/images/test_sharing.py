"""Workers need no room in /dev/shm for their images; where its locks find none, one line says so at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing import reductions

from starfire_cli.data import open_data
from starfire_cli.data.images import sharing
from starfire_cli.data.images import workers as reader
from starfire_cli.errors import StarfireError
from tests.helpers.data_layouts import options, train_and_val

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere PyTorch's shared memory is used")


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_has_the_layout_that_decoding_wants(shared: bool) -> None:
    images, labels = sharing.empty_batch(3, 5, shared=shared)
    wanted = torch.empty((3, 5, 5, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    assert images.shape == wanted.shape and images.stride() == wanted.stride() and images.dtype == torch.uint8
    assert labels.shape == (3,) and labels.dtype == torch.int64
    images.fill_(7)
    labels.fill_(-1)
    assert int(images.long().sum()) == 7 * 225 and labels.tolist() == [-1] * 3, "they do not overlap"
    assert sharing.empty_batch(0, 5, shared=shared)[0].shape == (0, 3, 5, 5)


@linux
def test_a_batch_is_handed_over_without_dev_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = sharing.empty_batch(2, 64, shared=True)
    descriptor, size = images.untyped_storage()._share_fd_cpu_()
    assert size >= 2 * 3 * 64 * 64
    assert "memfd:starfire-batch" in os.readlink(f"/proc/self/fd/{descriptor}")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        sharing.empty_batch(2, 64, shared=True)
    assert len(os.listdir("/proc/self/fd")) <= before, "no descriptor is left open"


@linux
def test_images_come_where_pytorch_can_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails here is what fails where /dev/shm is full: the file that PyTorch would make for a tensor."""
    train_and_val(tmp_path, size=(120, 120))
    alone = [batch for batch, _ in open_data(str(tmp_path), options(image_size=32)).val.batches(0)]
    original = reductions.reduce_storage

    def reduced(storage: torch.UntypedStorage) -> object:
        assert storage.is_shared(), "it would be copied to /dev/shm"
        return original(storage)

    monkeypatch.setitem(multiprocessing.reduction.ForkingPickler._extra_reducers, torch.UntypedStorage, reduced)
    found = [
        batch for batch, _ in open_data(str(tmp_path), options(image_size=32, workers=1, timeout=20)).val.batches(0)
    ]
    assert len(found) == len(alone) and all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


def test_no_room_for_locks_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_and_val(tmp_path, size=(120, 120))
    data = open_data(str(tmp_path), options(image_size=32))

    def none(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", none)
    with pytest.raises(StarfireError, match=r"shared memory is full: /dev/shm .*--shm-size .*--workers 0"):
        list(reader.decode_requests(data.val._reader, [(0, np.array([0]))], options(), 1))  # type: ignore[attr-defined]
    assert len(list(data.val.batches(0))) == 2, "--workers 0 needs none"


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("unable to allocate shared memory(shm) for file </torch_9_1>: No space left on device (28)", "--workers 0"),
        ("DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that dataloader's", "--workers 0"),
        ("NCCL error: Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)", "NCCL_SHM_DISABLE=1"),
    ],
)
def test_full_shared_memory_is_named(text: str, cure: str) -> None:
    said = str(reader.worker_failure(RuntimeError(text), 2, 120))
    assert said.startswith("shared memory is full: ") and "--shm-size" in said and cure in said and "\n" not in said


def test_other_failures_are_not_taken_for_it() -> None:
    triton = RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376")
    assert reader.worker_failure(triton, 2, 120) is None
    killed = reader.worker_failure(RuntimeError("DataLoader worker (pid 9) is killed by signal: Killed."), 2, 120)
    assert "killed, or out of memory" in str(killed)
