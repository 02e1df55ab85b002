"""Cuts of any unit within any competition, against literal loops over single weights."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from starfire_cli.pruning import Cut, apply_cuts
from tests.helpers.methods_strategies import Case, conv_cases, linear_cases, variants

UNITS = ("", "", "S", "R", "RS", "CRS", "KRS", "K", "C", "KC", "KCRS")
SCORES = {
    "max": lambda live, size: max(live, default=0.0),
    "sum": lambda live, size: sum(live),
    "mean": lambda live, size: sum(live) / size,
    "norm": lambda live, size: math.sqrt(sum(w * w for w in live)),
}


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    unit = draw(st.sampled_from(UNITS))
    within = "".join(axis for axis in "KCRS" if axis not in unit and draw(st.booleans()))
    return Cut(
        unit,
        within,
        draw(st.integers(0, 40)),
        reduce=draw(st.sampled_from(sorted(SCORES))),  # type: ignore[arg-type]
        keep=draw(st.sampled_from(["", "", "K", "C", "KC"])),
        tile=draw(st.sampled_from([1, 1, 2, 3])),
    )


def literal(weight: Tensor, alive: Tensor, cut: Cut, groups: int) -> Tensor:
    """What is left, unit by unit."""
    theta, living = weight.reshape(*weight.shape, *(1,) * (4 - weight.ndim)), alive.reshape(-1).tolist()
    K, C, R, S = theta.shape
    magnitudes, places = theta.abs().reshape(-1).tolist(), list(product(range(K), range(C), range(R), range(S)))
    of_unit: dict[tuple[int, ...], list[int]] = {}
    of_pool: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    of_kept: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for at, (k, c, r, s) in enumerate(places):
        group, k_in_group = divmod(k, K // groups)
        index = {"G": group, "K": k_in_group // cut.tile, "C": c // cut.tile, "R": r, "S": s}
        spans = {*cut.unit, *("G" if "K" in cut.unit and "C" in cut.unit else "")}
        unit = tuple(-1 if axis in spans else index[axis] for axis in "GKCRS")
        apart = [axis for axis in "GKCRS" if axis in cut.within or (axis == "G" and set(cut.within) & {"K", "C"})]
        of_unit.setdefault(unit, []).append(at)
        of_pool.setdefault(tuple(index[axis] for axis in apart), set()).add(unit)
        if cut.keep and living[at]:
            real = {"K": (group, k_in_group), "C": (group, c)}
            of_kept.setdefault(sum((real[axis] for axis in cut.keep), ()), set()).add(unit)
    live = {unit: [magnitudes[at] for at in ats if living[at]] for unit, ats in of_unit.items()}
    score = {unit: SCORES[cut.reduce](live[unit], len(ats)) for unit, ats in of_unit.items()}
    held = {max(units, key=lambda unit: (score[unit], unit)) for units in of_kept.values()}
    gone: set[tuple[int, ...]] = set()
    for units in of_pool.values():
        dead = [unit for unit in units if not live[unit]]
        rivals = sorted(units - set(dead) - held, key=lambda unit: (score[unit], unit))
        gone |= {*dead, *rivals[: max(0, cut.count - len(dead))]}
    dies = {at for unit in gone for at in of_unit[unit]}
    return torch.tensor([live and at not in dies for at, live in enumerate(living)]).reshape(weight.shape)


@given(case=st.one_of(conv_cases(), linear_cases()), cut=cuts())
def test_any_cut_is_what_loops_make_of_it(case: Case, cut: Cut) -> None:
    groups = case.layer.groups
    expected = case.alive if cut.count == 0 else literal(case.weight, case.alive, cut, groups)
    for weight in (case.weight, *variants(case.weight)):
        alive = torch.empty_like(weight, dtype=torch.bool).copy_(case.alive)
        left = apply_cuts(weight, alive, (cut,), groups)
        assert torch.equal(left, expected)
        assert left.data_ptr() != alive.data_ptr()


@given(case=conv_cases(), first=cuts(), second=cuts())
def test_cuts_are_made_one_after_the_other(case: Case, first: Cut, second: Cut) -> None:
    groups = case.layer.groups
    between = apply_cuts(case.weight, case.alive, (first,), groups)
    both = apply_cuts(case.weight, case.alive, (first, second), groups)
    assert torch.equal(both, apply_cuts(case.weight, between, (second,), groups))


@given(case=st.one_of(conv_cases(), linear_cases()), cut=cuts())
def test_what_was_cut_stays_whatever_the_weights_become(case: Case, cut: Cut) -> None:
    """Same budget, same mask; `keep` may give way where it held more than the count allows."""
    groups = case.layer.groups
    left = apply_cuts(case.weight, case.alive, (cut,), groups)
    moved = torch.randn(case.weight.shape, generator=torch.Generator().manual_seed(0)) * left
    again = apply_cuts(moved, left, (cut,), groups)
    assert not (again & ~left).any()
    if not cut.keep:
        assert torch.equal(again, left)


@pytest.mark.parametrize(
    ("cut", "shape", "groups", "competitors"),
    [
        (Cut("", "KC", 1), (8, 6, 3, 5), 1, 15),
        (Cut("RS", "C", 1), (8, 6, 3, 3), 1, 8),
        (Cut("RS", "C", 1), (8, 3, 3, 3), 2, 4),
        (Cut("RS", "", 1), (8, 1, 3, 3), 8, 8),
        (Cut("CRS", "", 1), (8, 3, 3, 3), 2, 8),
        (Cut("KRS", "", 1), (8, 3, 3, 3), 2, 6),
        (Cut("K", "", 1), (8, 3, 3, 3), 1, 27),
        (Cut("S", "K", 1), (8, 3, 2, 5), 1, 6),
        (Cut("", "", 1, tile=4), (10, 13), 1, 12),
    ],
)
def test_competitors(cut: Cut, shape: tuple[int, ...], groups: int, competitors: int) -> None:
    assert cut.competitors(shape, groups) == competitors
    weight = torch.arange(1.0, math.prod(shape) + 1).reshape(shape)
    alive = torch.ones(shape, dtype=torch.bool)
    assert not apply_cuts(weight, alive, (Cut(cut.unit, cut.within, competitors, tile=cut.tile),), groups).any()
    assert apply_cuts(weight, alive, (Cut(cut.unit, cut.within, competitors - 1, tile=cut.tile),), groups).any()


def test_scores_by_hand() -> None:
    weight = torch.tensor([[3.0, 0.0, 0.0], [2.0, 2.0, 0.0], [1.0, 1.0, 2.5]])
    alive = weight != 0
    weakest = {}
    for reduce in SCORES:
        left = apply_cuts(weight, alive, (Cut("C", "", 1, reduce=reduce),))  # type: ignore[arg-type]
        (weakest[reduce],) = (~left.any(1)).nonzero().flatten().tolist()
    assert weakest == {"max": 1, "sum": 0, "mean": 0, "norm": 1}  # 3 2 2.5, 3 4 4.5, 9 8 8.25


def test_cuts_are_compared_as_values() -> None:
    assert Cut("RS", "C", 3) == Cut("RS", "C", 3) != Cut("RS", "C", 4)
    assert len({Cut("RS", "C", 3), Cut("RS", "C", 3), Cut("RS", "", 3)}) == 2


def test_any_tensor_may_give_the_scores() -> None:
    """As do gradients times weights."""
    weight, gradient = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[9.0, 1.0, -5.0]])
    alive = torch.ones(1, 3, dtype=torch.bool)
    assert apply_cuts(weight * gradient, alive, (Cut("", "", 1),)).tolist() == [[True, False, True]]


def test_units_whose_weights_differ_compare_as_they_should() -> None:
    """In float32 both outputs add up to 1, and the tie would cost the first."""
    weight = torch.tensor([[1.0, 2.0**-25], [1.0, 0.0]])
    alive = torch.ones(2, 2, dtype=torch.bool)
    left = apply_cuts(weight, alive, (Cut("C", "", 1, reduce="sum"),))
    assert left.tolist() == [[True, True], [False, False]]
