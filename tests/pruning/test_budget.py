from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.pruning.budget import Goal, pruned
from starfire_cli.pruning.smallest import prune_smallest
from tests.helpers.paper_loops import first_to_go

sizes = st.one_of(st.integers(1, 2000), st.integers(1, 3_000_000).map(lambda n: 100 * n))  # n * t is often whole


@given(n=sizes, hundredths=st.integers(0, 99))
def test_the_count_is_the_exact_ceiling_at_any_size(n: int, hundredths: int) -> None:
    assert pruned(n, float(f"0.{hundredths:02d}")) == math.ceil(n * Fraction(hundredths, 100))


def test_the_largest_layers_do_not_lose_one_too_many() -> None:
    # 0.56 * 10^8 comes out 7.5e-9 above the whole number
    n = 100_000_000
    assert [pruned(n, h / 100) for h in range(100)] == [n // 100 * h for h in range(100)]


@given(n=sizes, parts=st.integers(1, 400), target=st.integers(1, 99), data=st.data())
def test_the_count_on_the_way_is_the_exact_ceiling(n: int, parts: int, target: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, parts))
    now = Goal(target=target / 100, progress=step / parts).threshold
    assert pruned(n, now) == math.ceil(n * Fraction(target, 100) * Fraction(step, parts))


@pytest.mark.parametrize(
    ("n", "threshold", "cap", "progress", "expected"),
    [
        (5, 0.6, None, 1.0, 3),  # 0.6 * 5 is 3.0000000000000004 in floating point
        (9, 0.0, None, 1.0, 0),
        (9, 0.2, 2, 1.0, 7),
        (9, 0.2, 2, 0.0, 2),
        (9, 0.0, 2, 0.5, 4),
        (9, 0.8, 2, 1.0, 8),
        (9, 0.9, None, 1.0, 9),
        (9, 0.5, 9, 1.0, 5),
        (1, 0.01, None, 1.0, 1),
        (3, 5.0, None, 1.0, 3),
    ],
)
def test_counts_by_hand(n: int, threshold: float, cap: int | None, progress: float, expected: int) -> None:
    assert pruned(n, threshold, cap, progress) == expected


rows = st.integers(1, 9).flatmap(
    lambda n: st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=n, max_size=n), min_size=1, max_size=5
    )
)


@given(rows=rows, dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]), data=st.data())
def test_the_smallest_go_and_ties_by_index(
    rows: list[list[tuple[int, bool]]], dtype: torch.dtype, data: st.DataObject
) -> None:
    n = len(rows[0])
    count = data.draw(st.integers(0, n))
    score = torch.tensor([[s for s, _ in row] for row in rows], dtype=dtype) / 8
    alive = torch.tensor([[a for _, a in row] for row in rows])
    left = prune_smallest(score, alive, count)
    expected = [first_to_go([s for s, _ in row], [a for _, a in row], count) for row in rows]
    assert left.tolist() == expected
    gone = (~left).sum(-1)
    assert torch.equal(gone, torch.maximum(torch.full_like(gone, count), (~alive).sum(-1)))


@given(n=st.integers(1, 2000), value=st.floats(0, 10, width=32), tenths=st.integers(1, 9))
def test_a_constant_loses_exactly_the_count_and_from_the_front(n: int, value: float, tenths: int) -> None:
    count = pruned(n, tenths / 10)
    left = prune_smallest(torch.full((1, n), value), torch.ones(1, n, dtype=torch.bool), count)
    assert left.tolist() == [[False] * count + [True] * (n - count)]
    assert count == math.ceil(n * Fraction(tenths, 10))


def test_the_input_is_left_as_it_was() -> None:
    score, alive = torch.rand(4, 9), torch.rand(4, 9) > 0.3
    before = score.clone(), alive.clone()
    for count in (0, 4, 9):
        left = prune_smallest(score, alive, count)
        left.zero_()
        assert torch.equal(score, before[0])
        assert torch.equal(alive, before[1])


def test_nothing_competes() -> None:
    empty = prune_smallest(torch.zeros(0, 9), torch.ones(0, 9, dtype=torch.bool), 3)
    assert empty.shape == (0, 9)
