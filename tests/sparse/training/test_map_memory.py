"""Memory of maps: nobody's memory is lent twice, and what is free is used again or given back."""

from __future__ import annotations

import gc
import mmap
import random
import threading

import pytest
import torch

from starfire_cli.sparse.training import map_memory
from starfire_cli.sparse.training.map_memory import MapMemory

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="Windows: tensors come from torch")


def test_tensors_keep_their_values_whatever_comes_and_goes() -> None:
    memory, rng = MapMemory(), random.Random(0)
    held: list[tuple[float, torch.Tensor]] = []
    for number in range(500):
        made = memory.floats(rng.choice([1, 15, 16, 17, 1000, 40_000]))
        assert made.data_ptr() % 64 == 0
        held.append((float(number), made.fill_(number)))
        if rng.random() < 0.5:
            held.pop(rng.randrange(len(held)))
    assert all(bool((tensor == value).all()) for value, tensor in held)
    assert len(memory.regions) == 1


def test_views_hold_memory() -> None:
    memory = MapMemory()
    view = memory.floats(1000).fill_(1.0).view(10, 100)[3]
    memory.release()
    other = memory.floats(1000).fill_(2.0)
    assert bool((view == 1).all())
    del view, other
    memory.release()
    assert not memory.regions


def test_the_first_place_is_taken_and_neighbours_join() -> None:
    memory = MapMemory()
    parts = [memory.floats(1600) for _ in range(4)]
    begin = parts[0].data_ptr()
    last = parts.pop()
    parts.clear()  # three neighbours
    assert memory.floats(3 * 1600).data_ptr() == begin
    assert last.data_ptr() == begin + 3 * 6400


def test_a_larger_region_for_a_larger_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_memory, "_REGION", 1 << 16)
    memory = MapMemory()
    kept = [memory.floats(1 << 13).fill_(1.0) for _ in range(4)] + [memory.floats(1 << 16).fill_(2.0)]
    assert [len(region.memory) for region in memory.regions] == [1 << 16, 1 << 16, 1 << 18]
    assert all(float(tensor.mean()) == (2 if len(tensor) > 1 << 13 else 1) for tensor in kept)


def test_released_memory_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(mmap, "MADV_DONTNEED"):
        pytest.skip("no madvise here")
    memory = MapMemory()
    kept, freed = memory.floats(1 << 20).fill_(1.0), memory.floats(1 << 20).fill_(2.0)
    begin = freed.data_ptr()
    del freed
    memory.release()
    again = memory.floats(1 << 20)
    assert again.data_ptr() == begin
    assert not again.any()  # the system clears what it gives
    assert bool((kept == 1).all())


def test_without_addresses_torch_gives_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(map_memory, "Region", none)
    assert MapMemory().floats(10).fill_(1.0).sum() == 10


def test_threads_and_the_garbage_collector_share_it() -> None:
    memory, wrong = MapMemory(), []

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(100):
            ring: list[object] = [memory.floats(rng.randrange(1, 5000)).fill_(number)]
            ring.append(ring)  # only the collector finds it
            tensor = memory.floats(1000).fill_(number)
            if not bool((tensor == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    memory.release()
    assert not wrong
    assert not memory.regions
