"""Penalties in closed form: values and gradients are those of autograd for the terms as papers write them."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from starfire_cli.pruning import penalties
from starfire_cli.pruning.penalties import L1, GroupLasso, Term, TermSum, strength_for_ratio

UNITS = ("CRS", "KRS", "K", "KCRS", "RS", "S", "C", "")


def literal(weight: Tensor, unit: str, groups: int, *, eps: float, weighted: bool) -> Tensor:
    """One kind of group as it is written: weight by weight, each in the group that its index says."""
    K, C, R, S = (*weight.shape, 1, 1)[:4]
    flat = weight.reshape(K, C, R, S)
    members: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for k, c, r, s in itertools.product(*map(range, (K, C, R, S))):
        place = {"K": k % (K // groups), "C": c, "R": r, "S": s}
        side = None if {"K", "C"} <= set(unit) else k // (K // groups)
        members[(side, *(i for dim, i in place.items() if dim not in unit))].append(flat[k, c, r, s])
    total = weight.sum() * 0
    for group in members.values():
        squares = torch.stack(group).square().sum()
        if eps or squares.detach().item():
            total = total + (math.sqrt(len(group)) if weighted else 1.0) * (squares + eps).sqrt()
    return total


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, int]:
    """A float64 weight with some groups of zeros, in either memory format, and its groups."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    K, C = groups * draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shape = (K, C) if draw(st.booleans()) and groups == 1 else (K, C, draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight[draw(st.integers(0, K - 1))] = 0
    weight[:, draw(st.integers(0, C - 1))] *= draw(st.sampled_from([0.0, 1.0, 1e-9]))
    return (
        weight.to(memory_format=torch.channels_last) if weight.ndim == 4 and draw(st.booleans()) else weight
    ), groups


@given(
    case=weights(),
    units=st.lists(st.sampled_from(UNITS), min_size=1, max_size=2, unique=True),
    eps=st.sampled_from([0.0, 1e-8, 1e-2]),
    weighted=st.booleans(),
    strength=st.sampled_from([0.0, 0.3, 7.0]),
    block=st.sampled_from([1, 7, 1 << 17]),
)
def test_group_lasso_is_what_autograd_says(
    case: tuple[Tensor, int], units: list[str], eps: float, weighted: bool, strength: float, block: int
) -> None:
    weight, groups = case
    parameter = nn.Parameter(weight)
    expected = torch.stack([literal(parameter, u, groups, eps=eps, weighted=weighted) for u in units]).sum()
    (strength * expected).backward()  # type: ignore[no-untyped-call]
    assert parameter.grad is not None
    rule = GroupLasso(units=tuple(units), eps=eps, weighted=weighted)
    start = torch.randn_like(weight)
    before, parameter.grad = parameter.grad, start.clone(memory_format=torch.preserve_format)
    penalty = TermSum([Term(parameter, rule, groups)], strength)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(penalties, "_BLOCK", block)
        total = float(penalty.total())
        penalty.add_gradients()
    assert total == pytest.approx(float(expected.detach()), rel=1e-12, abs=1e-300)
    torch.testing.assert_close(parameter.grad, start + before, rtol=1e-12, atol=1e-12)
    assert torch.equal(parameter.detach(), weight)


@given(case=weights(), strength=st.sampled_from([0.0, 0.3]))
def test_l1_is_what_autograd_says(case: tuple[Tensor, int], strength: float) -> None:
    parameter = nn.Parameter(case[0])
    (strength * parameter.abs().sum()).backward()  # type: ignore[no-untyped-call]
    assert parameter.grad is not None
    expected, parameter.grad = parameter.grad, torch.zeros_like(parameter)
    penalty = TermSum([Term(parameter, L1())], strength)
    penalty.add_gradients()
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-15, atol=0)
    assert float(penalty.total()) == pytest.approx(float(case[0].abs().sum()), rel=1e-14)


def test_terms_add_up_and_a_parameter_without_a_gradient_is_left_alone() -> None:
    one, two, idle = (nn.Parameter(torch.tensor(x)) for x in ([3.0, -4.0], [[0.0, 5.0]], [1.0]))
    one.grad, two.grad = torch.ones(2), torch.zeros(1, 2)
    penalty = TermSum([Term(one, L1()), Term(two, GroupLasso(("CRS",))), Term(idle, L1())])
    assert float(penalty.strength) == 0
    penalty.strength.fill_(0.5)
    penalty.add_gradients()
    assert one.grad.tolist() == [1.5, 0.5] and two.grad.tolist() == [[0.0, 0.5]] and idle.grad is None
    assert float(penalty.total()) == 7 + 5 + 1
    assert float(TermSum([]).total()) == 0


def test_the_strength_makes_the_penalty_its_share_of_the_loss() -> None:
    strength = strength_for_ratio(0.2, loss=2.4, total=300.0)
    assert strength * 300 / (2.4 + strength * 300) == pytest.approx(0.2, rel=1e-14)
