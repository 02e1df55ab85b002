"""Edges of methods of the whole network: one channel, short eras, a target of nothing, units of several sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from starfire_cli.errors import BadOption
from starfire_cli.pruning import METHODS, Pruner, layers_of_model
from starfire_cli.pruning.lasso import CHANNEL, FILTER, LAYER, live_units
from starfire_cli.pruning.schedule import Era

# The number of units of a convolution.
UNITS: dict[str, Callable[[tuple[int, ...]], int]] = {
    "kernel": lambda shape: shape[0] * shape[1],
    "row": lambda shape: shape[0] * shape[1] * shape[2],
    "column": lambda shape: shape[1] * shape[2] * shape[3],
    "filter": lambda shape: shape[0],
}


def pruner_of(spec: str, *, target: float = 0.8, length: int = 100) -> Pruner:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 8, 5), nn.Flatten())
    method = METHODS.build(spec)
    era = Era(first_step=0, last_step=length)
    return Pruner(net, layers_of_model(net)[0], conv=method, linear=method, target=target, era=era)


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (1, 4, 3, 3), (4, 1, 3, 3), (3, 5, 1, 1)])
def test_a_layer_keeps_its_strongest_filter_and_channel_however_narrow_it_is(shape: tuple[int, ...]) -> None:
    net = nn.Conv2d(shape[1], shape[0], shape[2])
    (layer,) = layers_of_model(net)[0]
    weight = 1e-6 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    alive = live_units(weight, layer, (FILTER, CHANNEL), limit=1e-4)
    assert int(alive.sum()) == shape[2] * shape[3]  # one kernel
    assert not live_units(weight, layer, (LAYER,), limit=1e-4).any()


@pytest.mark.parametrize(("length", "every"), [(5, 5), (30, 10), (1000, 50), (5000, 100)])
def test_evaluations_in_place_of_steps_leave_nine_in_ten(length: int, every: int) -> None:
    assert pruner_of("rigl", length=length).era.mask_every == every
    assert pruner_of("set", length=length).era.mask_every == max(1, min(100, length // 20))


def test_phases_that_have_no_room_are_refused() -> None:
    with pytest.raises(BadOption, match="an era of 20 steps has no room for 99 phases; at most 20"):
        pruner_of("ac-dc:phases=99", length=20)
    with pytest.raises(BadOption, match="an era of 20 steps has no room for 60 phases"):
        pruner_of("nest:phases=30", length=20)


@pytest.mark.parametrize("spec", ["gmp", "rigl", "snip", "granet"])
def test_a_target_of_nothing_prunes_nothing(spec: str) -> None:
    pruner = pruner_of(spec, target=0.0)
    pruner.begin(lambda: 0.0)
    assert sum(left for _, left, _ in pruner.plan()) == sum(layer.weights for layer in pruner.layers)


def test_nest_with_a_target_of_nothing_has_a_plan() -> None:
    assert pruner_of("nest", target=0.0).plan()


def test_erdos_renyi_of_kernels_counts_weights() -> None:
    """Kernels of 9, 1 and 25 weights: the sparsity is that of weights, to less than a kernel a layer."""
    pruner = pruner_of("mix:unit=kernel,start=random,allocation=erk,amount=swap,regrow=random")
    pruner.begin()
    weights = sum(layer.weights for layer in pruner.layers)
    assert abs(sum(pruner.zeros.values()) / weights - 0.8) < (9 + 1 + 25) / weights


@pytest.mark.parametrize("unit", ["kernel", "row", "column", "filter"])
def test_one_competition_of_units_of_several_sizes_counts_weights(unit: str) -> None:
    """The target is reached, and passed by less than a unit; a unit goes only if none that lives is weaker."""
    target = 0.4
    pruner = pruner_of(f"mix:unit={unit},reduce=max,allocation=global,every=1", target=target, length=2)
    before = {key: weight.detach().clone() for key, weight in pruner.weights.items()}
    pruner.begin()
    pruner.after_step(2)
    units = [layer.weights // UNITS[unit](layer.shape) for layer in pruner.layers]
    weights = sum(layer.weights for layer in pruner.layers)
    assert 0 <= sum(pruner.zeros.values()) - target * weights < max(units)
    if unit == "kernel":
        sizes = {key: weight.abs().amax((2, 3)) for key, weight in before.items()}
        gone = {key: ~mask.flatten(2).any(2) for key, mask in pruner.masks.items()}
        strongest_gone = max(float(size[gone[key]].max()) for key, size in sizes.items() if gone[key].any())
        assert strongest_gone <= min(float(size[~gone[key]].min()) for key, size in sizes.items())


@pytest.mark.parametrize(
    ("spec", "sparsity"), [("dsr", 0.8), ("granet:initial=0.5", 0.5), ("gmp", 0.0), ("nest:seed=0.9", 0.9)]
)
def test_the_sparsity_of_the_start_is_known(spec: str, sparsity: float) -> None:
    assert pruner_of(spec).start_sparsity == sparsity
