"""The masks against the paper's pseudocode, as literal loops (see paper_loops.py)."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Goal, apply_cuts
from tests.helpers.methods_strategies import Case, conv_cases, conv_layer, linear_cases, thresholds, weights
from tests.helpers.paper_loops import (
    decided_block,
    decided_ck,
    decided_count,
    decided_fine,
    decided_intra,
    decided_window,
    exact,
    paper_ck,
    paper_window,
)

distinct = st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


def nested(tensor: Tensor) -> list[list[list[float]]]:
    """(K, C, R, S) as [k][c] lists of R * S."""
    found: list[list[list[float]]] = tensor.flatten(2).tolist()
    return found


def conv(spec: str, case: Case, goal: Goal) -> Tensor:
    method = CONV_METHODS.build(spec)
    budget = method.budget(case.layer, goal)
    assert budget is not None
    return apply_cuts(case.weight, case.alive, budget, case.layer.groups)


def shuffled(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """All magnitudes differ: the printed pseudocode says nothing useful about ties."""
    total = torch.Size(shape).numel()
    signs = torch.randint(0, 2, (total,), generator=generator) * 2 - 1
    return ((torch.randperm(total, generator=generator) + 1.0) * signs).reshape(shape)


@given(generator=distinct, K=st.integers(1, 5), C=st.integers(1, 4), tenths=st.integers(1, 9), cap=st.integers(1, 8))
def test_algorithm_3_as_printed(generator: torch.Generator, K: int, C: int, tenths: int, cap: int) -> None:
    shape = (K, C, 3, 3)
    case = Case(layer=conv_layer(shape), weight=shuffled(shape, generator), alive=torch.ones(shape, dtype=torch.bool))
    for max_nonzero in (None, cap):
        options = "" if max_nonzero is None else f":max_nonzero={max_nonzero}"
        mask = conv(f"window{options}", case, Goal(target=tenths / 10))
        assert nested(mask) == paper_window(nested(case.weight), tenths / 10, max_nonzero)


@given(generator=distinct, K=st.integers(1, 12), C=st.integers(1, 4), hundredths=st.integers(1, 99))
def test_algorithm_1_as_printed(generator: torch.Generator, K: int, C: int, hundredths: int) -> None:
    assume(K * hundredths % 100)  # where K * t is whole the printed code takes one more than t
    shape = (K, C, 3, 3)
    case = Case(layer=conv_layer(shape), weight=shuffled(shape, generator), alive=torch.ones(shape, dtype=torch.bool))
    mask = conv("ck", case, Goal(target=hundredths / 100))
    assert mask.flatten(2).any(-1).tolist() == paper_ck(nested(case.weight), hundredths / 100)
    assert torch.equal(mask.flatten(2).any(-1), mask.flatten(2).all(-1))


@given(generator=distinct, tenths=st.integers(1, 9))
def test_where_the_printed_code_takes_one_more(generator: torch.Generator, tenths: int) -> None:
    shape = (10, 3, 3, 3)
    case = Case(layer=conv_layer(shape), weight=shuffled(shape, generator), alive=torch.ones(shape, dtype=torch.bool))
    ours = conv("ck", case, Goal(target=tenths / 10)).flatten(2).any(-1)
    printed = torch.tensor(paper_ck(nested(case.weight), tenths / 10))
    assert (ours.sum(0) == 10 - tenths).all()
    assert (printed.sum(0) == 10 - tenths - 1).all()
    assert not (printed & ~ours).any()


@given(case=conv_cases(), t=thresholds, cap=st.one_of(st.none(), st.integers(1, 9)))
def test_window_with_ties_and_dead_weights(case: Case, t: float, cap: int | None) -> None:
    assume(case.layer.kind == "window")
    mask = conv("window" if cap is None else f"window:max_nonzero={cap}", case, Goal(target=t))
    count = decided_count(case.layer.window, exact(t), cap if case.layer.shape[2:] == (3, 3) else None)
    assert nested(mask) == decided_window(nested(case.weight), nested(case.alive), count)  # type: ignore[arg-type]


@given(case=conv_cases(), t=thresholds)
def test_ck_with_ties_dead_kernels_and_groups(case: Case, t: float) -> None:
    assume(not case.layer.depthwise)
    groups = case.layer.groups
    count = decided_count(case.layer.shape[0] // groups, exact(t))
    mask = conv("ck", case, Goal(target=t))
    assert nested(mask) == decided_ck(nested(case.weight), nested(case.alive), count, groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["window", "window:max_nonzero=2", "intra", "intra:share=0.9", "inter"])
@given(case=conv_cases(windows=((1, 1),), least_channels=2), t=thresholds)
def test_pointwise_convolutions_follow_ck(spec: str, case: Case, t: float) -> None:
    goal = Goal(target=t)
    assert torch.equal(conv(spec, case, goal), conv("ck", case, goal))


@given(
    case=conv_cases(),
    t=thresholds,
    share=st.sampled_from(["0", "0.3", "0.5", "0.75", "1"]),
    cap=st.one_of(st.none(), st.integers(1, 9)),
)
def test_algorithm_4_windows_first_then_the_kernels_that_are_lacking(
    case: Case, t: float, share: str, cap: int | None
) -> None:
    assume(case.layer.kind == "window" and not case.layer.depthwise)
    spec = f"intra:share={share}" + ("" if cap is None else f",max_nonzero={cap}")
    theta, alive = nested(case.weight), nested(case.alive)
    expected = decided_intra(theta, alive, exact(t), Fraction(share), cap, case.layer.groups)  # type: ignore[arg-type]
    assert nested(conv(spec, case, Goal(target=t))) == expected


@given(data=st.data(), t=thresholds, split=st.sampled_from([0.25, 0.5, 0.8]), progress=st.integers(0, 20))
def test_inter_prunes_in_two_phases(data: st.DataObject, t: float, split: float, progress: int) -> None:
    """In the first phase only one kind goes; at the end both stand where intra stands."""
    shape = (data.draw(st.integers(1, 9)), 2, 3, 3)
    layer = conv_layer(shape)
    weight = data.draw(weights(shape))
    final = CONV_METHODS.build("intra").budget(layer, Goal(target=t))
    goal = Goal(target=t, progress=progress / 20)
    assert final is not None
    for order, first in (("ck-window", 1), ("window-ck", 0)):  # kernels, windows
        method = CONV_METHODS.build(f"inter:order={order},split={split}")
        assert method.budget(layer, Goal(target=t)) == final
        budget = method.budget(layer, goal)
        assert budget is not None
        if progress / 20 <= split:
            assert budget[1 - first].count == 0
        else:
            assert budget[first] == final[first]
        case = Case(layer=layer, weight=weight, alive=torch.ones(shape, dtype=torch.bool))
        left = decided_window(nested(weight), nested(case.alive), budget[0].count)  # type: ignore[arg-type]
        assert nested(conv(f"inter:order={order},split={split}", case, goal)) == decided_ck(
            nested(weight), left, budget[1].count
        )


def linear(spec: str, case: Case, t: float) -> list[list[bool]]:
    method = LINEAR_METHODS.build(spec)
    budget = method.budget(case.layer, Goal(target=t))
    assert budget is not None
    mask: list[list[bool]] = apply_cuts(case.weight, case.alive, budget).tolist()
    return mask


@given(case=linear_cases(), t=thresholds)
def test_fine_with_ties_and_the_neuron_guard(case: Case, t: float) -> None:
    count = decided_count(case.layer.weights, exact(t))
    assert linear("fine", case, t) == decided_fine(case.weight.tolist(), case.alive.tolist(), count)


@given(case=linear_cases(), t=thresholds, n=st.integers(1, 4))
def test_block_with_ragged_edges(case: Case, t: float, n: int) -> None:
    rows, columns = case.layer.shape
    count = decided_count(-(-rows // n) * -(-columns // n), exact(t))
    assert linear(f"block:n={n}", case, t) == decided_block(case.weight.tolist(), case.alive.tolist(), n, count)


@given(case=linear_cases(), t=thresholds, n=st.integers(1, 4), share=st.sampled_from(["0", "0.5", "0.8", "1"]))
def test_two_tier_is_block_then_fine(case: Case, t: float, n: int, share: str) -> None:
    rows, columns = case.layer.shape
    tiles = decided_count(-(-rows // n) * -(-columns // n), Fraction(share) * exact(t))
    weight = case.weight.tolist()
    after_tiles = decided_block(weight, case.alive.tolist(), n, tiles)
    expected = decided_fine(weight, after_tiles, decided_count(rows * columns, exact(t)))
    assert linear(f"two-tier:n={n},share={share}", case, t) == expected
