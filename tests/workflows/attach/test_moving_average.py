"""What is given as a moving average has to be one: weights of its own, of the model's shapes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import starfire_cli as starfire
from starfire_cli.errors import BadOption
from tests.workflows.attach.loops import assert_equal, made, state_of

ERA = {"method": "gmp", "target": 0.5, "era_steps": (2, 10)}


def with_a_shared_parameter(model):
    other = copy.deepcopy(model)
    other[3].weight = model[3].weight
    return other


def with_shared_memory(model):
    other = copy.deepcopy(model)
    other[3].weight = nn.Parameter(model[3].weight.detach())
    return other


def of_other_shapes(model):
    other = copy.deepcopy(model)
    other[12] = nn.Linear(model[12].in_features, 2 * model[12].out_features)
    return other


@pytest.mark.parametrize(
    ("average", "message"),
    [
        (lambda m: m, "^ema is the model itself"),
        (lambda m: torch.compile(m, backend="eager"), "^ema is the model itself"),
        (with_a_shared_parameter, r"^ema shares the memory of 3\.weight with the model"),
        (with_shared_memory, r"^ema shares the memory of 3\.weight"),
        (of_other_shapes, r"^ema is no average of this model: 12\.weight is \(8, 9\) there and \(4, 9\) in the model"),
        (lambda m: m[0], "without a network whose parameters are called as the model's"),
    ],
)
def test_what_is_no_average_is_refused_and_nothing_is_changed(average, message):
    model, optimizer = made()
    before = state_of(model)
    with pytest.raises(BadOption, match=message) as caught:
        starfire.attach(model, optimizer, ema=average(model), **ERA)
    assert "\n" not in str(caught.value)
    assert_equal(state_of(model), before)
    starfire.attach(model, optimizer, ema=copy.deepcopy(model), **ERA)


def test_the_average_of_a_dense_run_has_plain_names(tmp_path):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, method="dense", ema=AveragedModel(model))
    assert starfire.load(starfire.save(tmp_path / "dense.pt", pruner)).keys() == model.state_dict().keys()
