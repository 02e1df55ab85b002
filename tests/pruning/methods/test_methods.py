"""Properties of every pruning method, whatever its rule: new members are covered as soon as their file exists."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from starfire_cli.errors import BadOption
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Goal, Layer, apply_cuts
from starfire_cli.registry import Family
from tests.helpers.methods_strategies import (
    Case,
    conv_cases,
    conv_layer,
    linear_cases,
    linear_layer,
    thresholds,
    variants,
)

CONV_SPECS = [
    *CONV_METHODS.names(),
    "window:max_nonzero=2",
    "intra:share=0.3,max_nonzero=3",
    "intra:share=0",
    "intra:share=1",
    "inter:order=window-ck,split=0.3",
    "ck:depthwise=true",
    "mao:grain=row",
    "mao:grain=kernel",
    "mao:grain=filter",
]
LINEAR_SPECS = [*LINEAR_METHODS.names(), "block:n=1", "block:n=3", "two-tier:n=2,share=0.8"]


def mask_of(spec: str, case: Case, goal: Goal, weight: Tensor | None = None, alive: Tensor | None = None) -> Tensor:
    """What `spec` leaves of a case; everything where it leaves the layer alone."""
    budget = (LINEAR_METHODS if case.layer.kind == "linear" else CONV_METHODS).build(spec).budget(case.layer, goal)
    alive = case.alive if alive is None else alive
    if budget is None:
        return alive.clone()
    return apply_cuts(case.weight if weight is None else weight, alive, budget, case.layer.groups)


any_case = pytest.mark.parametrize(
    ("spec", "cases"),
    [pytest.param(s, conv_cases(), id=f"conv-{s}") for s in CONV_SPECS]
    + [pytest.param(s, linear_cases(), id=f"fc-{s}") for s in LINEAR_SPECS],
)
goals = st.builds(Goal, target=thresholds, progress=st.sampled_from([0.0, 0.1, 0.35, 0.5, 0.8, 1.0]))


@any_case
@given(data=st.data(), goal=goals)
def test_a_mask_only_shrinks_and_the_inputs_stay(
    spec: str, cases: st.SearchStrategy[Case], data: st.DataObject, goal: Goal
) -> None:
    case = data.draw(cases)
    weight, alive = case.weight.clone(), case.alive.clone()
    mask = mask_of(spec, case, goal)
    assert mask.dtype == torch.bool
    assert mask.shape == case.weight.shape
    assert not (mask & ~alive).any()
    assert torch.equal(case.weight, weight)
    assert torch.equal(case.alive, alive)
    assert mask.data_ptr() != case.alive.data_ptr()


@any_case
@given(data=st.data(), goal=goals)
def test_the_memory_format_the_dtype_and_the_signs_change_nothing(
    spec: str, cases: st.SearchStrategy[Case], data: st.DataObject, goal: Goal
) -> None:
    case = data.draw(cases)
    expected = mask_of(spec, case, goal)
    for weight in variants(case.weight):
        alive = torch.empty_like(weight, dtype=torch.bool).copy_(case.alive)  # with the weight's strides
        assert torch.equal(mask_of(spec, case, goal, weight, alive), expected)
        assert torch.equal(mask_of(spec, case, goal, weight), expected)
    assert torch.equal(mask_of(spec, case, goal, case.weight.neg()), expected)
    assert torch.equal(mask_of(spec, case, goal, torch.nn.Parameter(case.weight)), expected)


@any_case
@given(data=st.data(), goal=goals)
def test_while_the_budget_stays_so_does_the_mask(
    spec: str, cases: st.SearchStrategy[Case], data: st.DataObject, goal: Goal
) -> None:
    """What allows the pruner to pass over layers: other weights, the same budget, the same mask.

    The one exception: where the neuron guard kept tiles from going, other weights may let it give way.
    """
    case = data.draw(cases)
    left = mask_of(spec, case, goal)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    moved = torch.randn(case.weight.shape, generator=generator) * left
    again = mask_of(spec, case, goal, moved, left)
    if not torch.equal(again, left):
        budget = LINEAR_METHODS.build(spec).budget(case.layer, goal)
        assert budget is not None
        n = budget[0].tile
        tiles = [left[o : o + n, i : i + n] for o in range(0, left.shape[0], n) for i in range(0, left.shape[1], n)]
        assert sum(not tile.any() for tile in tiles) < budget[0].count


@any_case
@given(data=st.data(), target=thresholds)
def test_nothing_goes_before_the_era_and_more_goes_later(
    spec: str, cases: st.SearchStrategy[Case], data: st.DataObject, target: float
) -> None:
    case = data.draw(cases)
    alive = torch.ones_like(case.alive)
    before = mask_of(spec, case, Goal(target=target, progress=0.0), alive=alive)
    assert before.all()
    left = [int(mask_of(spec, case, Goal(target=target, progress=p / 10), alive=alive).sum()) for p in range(11)]
    # intra alone may fall back: each weight that a window loses lowers the share of the kernels (docs/method.md)
    if not spec.startswith("intra"):
        assert left == sorted(left, reverse=True)


@pytest.mark.parametrize("spec", CONV_SPECS)
@pytest.mark.parametrize(
    "layer",
    [conv_layer((64, 64, 3, 3)), conv_layer((256, 64, 1, 1)), conv_layer((64, 3, 7, 7)), conv_layer((64, 16, 3, 3), 4)],
    ids=lambda layer: "x".join(map(str, layer.shape)),
)
@pytest.mark.parametrize("target", [0.2, 0.4, 0.6, 0.8])
def test_the_layer_ends_at_its_target_and_not_a_unit_beyond(spec: str, layer: object, target: float) -> None:
    if spec == "dense":
        return
    case = Case(layer=layer, weight=torch.randn(layer.shape), alive=torch.ones(layer.shape, dtype=torch.bool))  # type: ignore
    zeros = 1 - mask_of(spec, case, Goal(target=target)).float().mean().item()
    assert zeros >= target - 1e-6
    if "max_nonzero" not in spec or case.layer.shape[2:] != (3, 3):
        cuts = CONV_METHODS.build(spec).budget(case.layer, Goal(target=target)) or ()
        assert zeros < target + max(1 / cut.competitors(case.layer.shape, case.layer.groups) for cut in cuts) + 1e-6


@pytest.mark.parametrize("spec", LINEAR_SPECS)
@given(data=st.data(), target=thresholds)
def test_every_output_neuron_that_lives_keeps_a_weight(spec: str, data: st.DataObject, target: float) -> None:
    case = data.draw(linear_cases())
    mask = mask_of(spec, case, Goal(target=target))
    assert torch.equal(mask.any(1), case.alive.any(1))


@pytest.mark.parametrize("spec", [s for s in CONV_SPECS if s != "ck:depthwise=true"])
@pytest.mark.parametrize("shape", [(12, 1, 3, 3), (12, 1, 1, 1), (24, 1, 3, 3)])
def test_no_depthwise_kernel_goes_whole(spec: str, shape: tuple[int, ...]) -> None:
    layer = conv_layer(shape, groups=12)
    case = Case(layer=layer, weight=torch.randn(shape), alive=torch.ones(shape, dtype=torch.bool))
    for target in (0.1, 0.5, 0.8):
        assert mask_of(spec, case, Goal(target=target)).flatten(1).any(1).all()


def test_depthwise_kernels_compete_where_asked() -> None:
    layer = conv_layer((10, 1, 3, 3), groups=10)
    weight = torch.arange(1, 11.0)[:, None, None, None].expand(10, 1, 3, 3)
    case = Case(layer=layer, weight=weight, alive=torch.ones(10, 1, 3, 3, dtype=torch.bool))
    mask = mask_of("ck:depthwise=true", case, Goal(target=0.3))
    assert mask.flatten(1).all(1).tolist() == [False] * 3 + [True] * 7


def test_weights_that_differ_only_in_float64_are_told_apart() -> None:
    weight = torch.tensor([[2.0, 1.0 + 1e-12, 1.0, 1.0 + 2e-12]], dtype=torch.float64)
    alive = torch.ones(1, 4, dtype=torch.bool)
    fc = Case(layer=linear_layer((1, 4)), weight=weight, alive=alive)
    assert mask_of("fine", fc, Goal(target=0.25)).tolist() == [[True, True, False, True]]
    conv = Case(layer=conv_layer((1, 1, 2, 2)), weight=weight.view(1, 1, 2, 2), alive=alive.view(1, 1, 2, 2))
    assert mask_of("window", conv, Goal(target=0.25)).flatten().tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("family", "spec", "says"),
    [
        (CONV_METHODS, "window:max_nonzero=0", "1 to 9"),
        (CONV_METHODS, "window:max_nonzero=10", "1 to 9"),
        (CONV_METHODS, "intra:share=1.5", "0 to 1"),
        (CONV_METHODS, "intra:share=nan", "is not a number"),
        (CONV_METHODS, "inter:order=both", "ck-window, window-ck"),
        (CONV_METHODS, "inter:split=1", "between 0 and 1"),
        (LINEAR_METHODS, "block:n=5", "1 to 4"),
        (LINEAR_METHODS, "two-tier:n=0", "1 to 4"),
        (LINEAR_METHODS, "two-tier:share=-0.1", "0 to 1"),
    ],
)
def test_options_out_of_range_are_named(family: Family[object], spec: str, says: str) -> None:
    with pytest.raises(BadOption) as error:
        family.build(spec)
    assert spec in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("spec", [*CONV_SPECS, *LINEAR_SPECS])
def test_a_budget_is_the_same_cuts_all_along_and_their_counts_are_whole(spec: str) -> None:
    """What allows the pruner to choose kernels once and for all, and to compare budgets."""
    conv = spec in CONV_SPECS
    layers = [
        conv_layer((16, 8, 3, 3)),
        conv_layer((16, 8, 1, 1)),
        conv_layer((12, 1, 3, 3), 12),
        conv_layer((6, 1, 1, 1), 6),
    ]
    for layer in layers if conv else [linear_layer((10, 64))]:
        method = (CONV_METHODS if conv else LINEAR_METHODS).build(spec)
        along = [method.budget(layer, Goal(target=0.63, progress=p / 13)) for p in range(14)]
        forms = {None if cuts is None else tuple(replace(cut, count=0) for cut in cuts) for cuts in along}
        assert len(forms) == 1
        assert all(type(cut.count) is int for cuts in along for cut in cuts or ())
        other = Layer(name="other", key="other.weight", kind=layer.kind, shape=layer.shape, groups=layer.groups)
        assert method.budget(other, Goal(target=0.63)) == along[-1]
