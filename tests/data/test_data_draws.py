from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.data.draws import Draws, choose, shuffled, spread

WORD = 2**64


def splitmix(state: int) -> int:
    """The finaliser of splitmix64 as published, on python's integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WORD
    return state ^ (state >> 31)


def reference_word(seed: int, epoch: int, index: int, draw: int) -> int:
    golden, key = 0x9E3779B97F4A7C15, 0
    for part in (seed, epoch, draw):
        key = splitmix((key + part * golden + golden) % WORD)
    return splitmix((splitmix((index * golden + key) % WORD) + key) % WORD)


@given(st.integers(-5, 2**70), st.integers(0, 10**6), st.lists(st.integers(0, 2**62), min_size=1, max_size=5))
def test_words_are_the_hash_of_seed_epoch_index_and_draw(seed: int, epoch: int, index: list[int]) -> None:
    draws = Draws(seed, epoch, np.array(index))
    for draw in range(3):
        assert draws.words().tolist() == [reference_word(seed, epoch, i, draw) for i in index]


@given(st.permutations(range(40)), st.integers(0, 3))
def test_an_images_numbers_do_not_depend_on_its_neighbours(order: list[int], epoch: int) -> None:
    together = Draws(3, epoch, np.arange(40))
    apart = Draws(3, epoch, np.array(order))
    for _ in range(2):
        assert np.array_equal(together.uniform(-1, 2)[order], apart.uniform(-1, 2))


def test_uniform_numbers_are_uniform_and_independent() -> None:
    draws = Draws(0, 1, np.arange(100_000))
    first, second = draws.uniform(), draws.uniform()
    next_epoch = Draws(0, 2, np.arange(100_000)).uniform()
    for numbers in (first, second, next_epoch):
        assert numbers.min() >= 0 and numbers.max() < 1
        shares = np.bincount((numbers * 50).astype(int), minlength=50)
        assert ((shares - 2000) ** 2 / 2000).sum() < 100  # chi-squared, 49 degrees of freedom: p = 2e-5
    for other in (second, next_epoch, np.roll(first, 1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.015


def test_integers_include_both_ends() -> None:
    draws = Draws(0, 0, np.arange(2000))
    assert set(draws.integers(-1, 3).tolist()) == {-1, 0, 1, 2, 3}
    high = np.arange(2000) % 4
    drawn = draws.integers(0, high)
    assert (drawn <= high).all() and all((drawn[high == h] == h).any() for h in range(4))


@given(st.integers(0, 300), st.integers(0, 5), st.integers(0, 5))
def test_a_shuffle_has_every_image_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(count, seed, epoch).tolist()) == list(range(count))


def test_shuffles_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(shuffled(50, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(st.lists(st.integers(0, 20), min_size=2, max_size=6).filter(any), st.data())
def test_limits_are_met_exactly_and_in_proportion(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(1, sum(counts)))
    quota = spread(np.array(counts), total)
    assert quota.sum() == total
    assert all(abs(q - c * total / sum(counts)) < 1 and q <= c for q, c in zip(quota, counts, strict=True))
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = choose(labels, quota, seed=1)
    assert np.bincount(labels[chosen], minlength=len(counts)).tolist() == quota.tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_choice_depends_on_its_seed_alone(seed: int) -> None:
    labels = np.arange(60) % 3
    quota = np.array([5, 5, 5])
    assert np.array_equal(choose(labels, quota, seed), choose(labels.copy(), quota, seed))
    assert not np.array_equal(choose(labels, quota, seed), choose(labels, quota, seed + 1))
