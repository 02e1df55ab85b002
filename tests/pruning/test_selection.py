"""Selections against sorted lists: ties in both orders of memory, rows, signs, several layers; numba and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from starfire_cli.pruning.allocation import globally
from starfire_cli.pruning.kernels import KERNELS
from starfire_cli.pruning.layer_units import LayerUnits, Unit
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.memory_order import MemoryOrder
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.schedule import Era
from starfire_cli.pruning.selection import (
    Lists,
    below,
    smallest,
    smallest_by_sign,
    smallest_of_rows,
)

CHANNELS, WINDOW = 70, 9
ORDER = MemoryOrder(channels=CHANNELS, window=WINDOW)
MANY = 33 * CHANNELS * WINDOW  # so many that a sample tells where they lie


def lists(name: str) -> Lists:
    if name == "numba":
        pytest.importorskip("numba")
    found: Lists = KERNELS.build(name).list_candidates
    return found


def values(count: int, kinds: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores of both signs, of so many magnitudes, and a third of them as candidates."""
    draws = np.random.default_rng(seed)
    scores = draws.integers(-kinds, kinds + 1, count) / np.float32(8)
    return torch.from_numpy(scores.astype(np.float32)), torch.from_numpy(draws.random(count) < 0.3)


def weakest(score: Tensor, among: Tensor, count: int, sign: int = 1) -> list[int]:
    places = [i for i, is_one in enumerate(among.tolist()) if is_one]
    return sorted(sorted(places, key=lambda i: (sign * abs(float(score[i])), i))[:count])


def places(chosen: Tensor) -> list[int]:
    return chosen.nonzero().flatten().tolist()


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 511, 512, 513, 1500])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.25, math.inf), (0.0, math.inf), (1e-45, 1e-38), (2.0, 1.0)])
def test_numba_lists_the_candidates_that_numpy_does(count: int, low: float, high: float) -> None:
    draws = np.random.default_rng(count)
    kinds = np.array([0.0, -0.0, 0.5, -0.5, 0.25, np.inf, -np.inf, np.nan, 1e-45, -1e-39, 3e38], np.float32)
    score, among = draws.choice(kinds, count), draws.random(count) < 0.5
    expected = [i for i in range(count) if among[i] and low <= abs(score[i]) <= high]
    for name in ("torch", "numba"):
        found = lists(name)(score, among, low, high) if count else None
        if found is not None:
            assert found.places.tolist() == expected
            assert found.scores.tobytes() == score[expected].tobytes()
            assert found.above == int(np.count_nonzero(among & (score > 0)))


@pytest.mark.parametrize("name", ["torch", "numba"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("kinds", "share"), [(3, 0.01), (3, 0.5), (10**6, 0.03), (10**6, 0.97), (0, 0.1)])
def test_ties_go_by_index_whatever_the_order_in_memory(kinds: int, share: float, sign: int, name: str) -> None:
    score, among = values(MANY, kinds)
    count = round(share * int(among.sum()))
    by_place = ORDER.by_place(score), ORDER.by_place(among)
    assert torch.equal(ORDER.by_index(by_place[0]), score)
    found = smallest(*by_place, count, sign=sign, order=ORDER, lists=lists(name))
    expected = weakest(score, among, count, sign)
    assert places(ORDER.by_index(found)) == expected
    assert places(smallest(score, among, count, sign=sign, lists=lists(name))) == expected
    assert places(smallest(score.double(), among, count, sign=sign, lists=lists(name))) == expected


@pytest.mark.parametrize("name", ["torch", "numba"])
@pytest.mark.parametrize("count", [100, MANY])
@pytest.mark.parametrize("lean", [0.0, 5.0, -400.0])
def test_each_sign_loses_its_share(lean: float, count: int, name: str) -> None:
    """Also where nearly all are of one sign."""
    score, among = values(count, 400)
    score = score + lean
    goes = smallest_by_sign(score, among, lambda n: n // 3, lists=lists(name))
    expected = set()
    for side in (among & (score > 0), among & (score <= 0)):
        expected |= set(weakest(score, side, int(side.sum()) // 3))
    assert places(goes) == sorted(expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_each_row_gives_its_own_number(sign: int) -> None:
    score, among = values(40 * CHANNELS * WINDOW, 5)
    score_KN, among_KN = score.reshape(40, -1), among.reshape(40, -1)
    count_K = torch.tensor([max(0, min(int(row.sum()), 7 * k - 20)) for k, row in enumerate(among_KN)])
    count_K[9] = among_KN[9].sum()
    order = [torch.stack([ORDER.by_place(row) for row in rows]) for rows in (score_KN, among_KN)]
    found_KN = smallest_of_rows(order[0], order[1], count_K, sign=sign, order=ORDER)
    for k, row in enumerate(found_KN):
        assert places(ORDER.by_index(row)) == weakest(score_KN[k], among_KN[k], int(count_K[k]), sign)


def test_what_lies_below_a_limit() -> None:
    score, among = values(MANY, 100)
    assert torch.equal(below(score, among, 4.0), among & (score.abs() < 4))


@pytest.mark.parametrize("name", ["torch", "numba"])
@pytest.mark.parametrize("kinds", [4, 10**6])
@pytest.mark.parametrize("share", [1e-5, 0.3, 0.9999])
def test_a_sample_brackets_the_cutoff_of_all_layers(share: float, kinds: int, name: str) -> None:
    """Layers of other scales and lengths, so many that a sample is taken; the strongest of each does not compete."""
    layers, rows, scores = {}, [], {}
    for n, count in enumerate((200_000, 90_000, 3)):
        score, among = values(count, kinds, n)
        score *= 1 + n
        among[:2] = True
        x = Layer(name=str(n), key=str(n), kind="linear", shape=(1, count))
        layers[x.key] = LayerUnits(x, Unit(), score[None], among[None], lists=lists(name))
        scores[x.key] = score
        live = np.sort(score[among].abs().numpy())[:-1]
        rows.append(np.stack([live, np.full(len(live), n)]))
    ranked = np.concatenate(rows, axis=1)
    count = round(share * ranked.shape[1])
    first = np.lexsort((ranked[1], ranked[0]))[:count]
    expected = {str(n): int((ranked[1][first] == n).sum()) for n in range(3)}
    assert globally(layers, scores, count) == expected


@pytest.mark.parametrize("count", [5, 400, 900])
def test_what_is_drawn_does_not_depend_on_the_order_in_memory(count: int) -> None:
    among = torch.rand(2 * CHANNELS * WINDOW, generator=torch.Generator().manual_seed(0)) < 0.8
    moment = Moment(step=1, era=Era(first_step=0, last_step=2), target=0.5, seed=1)
    found = moment.choose("a", ORDER.by_place(among), count, order=ORDER)
    assert torch.equal(ORDER.by_index(found), moment.choose("a", among, count))
    assert int(found.sum()) == count
