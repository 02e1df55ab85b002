from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.data.shards import layout as module
from starfire_cli.data.shards.layout import Shards


def made(counts: list[int], size: int = 1000) -> Shards:
    counts_M = np.array(counts)
    return Shards(
        places=tuple(f"{i}.tar" for i in range(len(counts))),
        lengths=counts_M * size + 1024,
        shard=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        offset=np.concatenate([512 + size * np.arange(n) for n in counts]),
        size=np.full(counts_M.sum(), size - 512),
        labels=np.zeros(counts_M.sum(), dtype=np.int64),
    )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=50), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_has_every_image_once_and_is_a_function_of_seed_and_epoch(
    counts: list[int], seed: int, epoch: int
) -> None:
    shards = made(counts)
    order = shards.order(seed, epoch)
    assert sorted(order.tolist()) == list(range(len(shards)))
    assert np.array_equal(order, shards.order(seed, epoch))
    if len(shards) > 20:
        assert not np.array_equal(order, shards.order(seed, epoch + 1))
        assert not np.array_equal(order, shards.order(seed + 1, epoch))


def test_shards_are_read_once_side_by_side_and_from_front_to_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 4)
    monkeypatch.setattr(module, "SLICE", 10_000)  # ten images
    counts = [40, 40, 40, 40, 40, 40, 40, 40, 40, 13]
    shards = made(counts)
    order = shards.order(3, 1)
    shard = shards.shard[order]
    first = {s: int(np.flatnonzero(shard == s)[0]) for s in range(10)}
    last = {s: int(np.flatnonzero(shard == s)[-1]) for s in range(10)}
    for place in range(0, len(order), 7):
        assert sum(first[s] <= place <= last[s] for s in range(10)) <= 4
    for s in range(10):  # an image is never far from where its turn would be without any shuffling
        inside = shards.offset[order][shard == s] // 1000
        assert np.abs(inside - np.arange(len(inside))).max() <= 10
    assert any((np.diff(shards.offset[order][shard == s]) < 0).any() for s in range(9))


def test_the_shuffle_is_fair_within_a_window() -> None:
    """With everything in one window each image is equally likely at each place."""
    shards = made([10, 10])
    places = np.array([np.argsort(shards.order(0, epoch)) for epoch in range(2000)])
    assert np.abs(places.mean(axis=0) - 9.5).max() < 0.7  # its deviation is 5.8 / sqrt(2000) = 0.13
    assert len({tuple(row) for row in places.tolist()}) == 2000


def test_a_part_of_the_images_keeps_its_order() -> None:
    shards = made([30, 30, 30])
    some = np.arange(0, 90, 4)
    assert sorted(shards.take(some).order(0, 0).tolist()) == list(range(len(some)))
