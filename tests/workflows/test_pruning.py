"""Report of `--dry-run` on each layer's cuts, and on targets that leave nothing of one."""

from __future__ import annotations

import pytest
from torch import nn

from starfire_cli.errors import BadOption
from starfire_cli.pruning import METHODS, Cut, Goal, Layer, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era
from starfire_cli.workflows.pruning import plan_layers, rule_in_words
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import pruning_of
from tests.helpers.methods_strategies import conv_layer, linear_layer

CONV, POINTWISE, DEPTHWISE = conv_layer((10, 6, 3, 3)), conv_layer((10, 6, 1, 1)), conv_layer((12, 1, 3, 3), 12)


@pytest.mark.parametrize(
    ("spec", "layer", "words"),
    [
        ("window", CONV, "6/9 of a window"),
        ("ck", CONV, "6/10 kernels of an input"),
        ("ck", conv_layer((10, 3, 3, 3), 2), "3/5 kernels of an input"),
        ("window", POINTWISE, "6/10 weights of an input"),
        ("intra", CONV, "3/9 of a window + 4/10 kernels of an input"),
        ("ck", DEPTHWISE, "nothing new"),
        ("ck:depthwise=true", DEPTHWISE, "8/12 kernels"),  # 0.6 * 12 is 7.2
        ("fine", linear_layer((10, 20)), "120/200 weights"),
        ("block", linear_layer((10, 20)), "9 4x4 tiles"),
        ("two-tier:n=2", linear_layer((10, 20)), "15 2x2 tiles + 120/200 weights in all"),
    ],
)
def test_a_rule_in_words(spec: str, layer: Layer, words: str) -> None:
    assert rule_in_words(layer, METHODS.build(spec).budget(layer, Goal(target=0.6))) == words


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (Cut("CRS", "", 4), "4/10 filters"),
        (Cut("KRS", "", 4), "4/6 input channels"),
        (Cut("RS", "K", 4), "4/6 kernels of an output"),
        (Cut("S", "", 4), "4/180 rows"),
        (Cut("", "", 0), "nothing new"),
    ],
)
def test_other_cuts_in_words(cut: Cut, words: str) -> None:
    assert rule_in_words(CONV, (cut,)) == words


def plan(method: str, target: float) -> list[int]:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=12), nn.Flatten(), nn.Linear(48, 5))
    pruning = pruning_of(TrainRequest(method=method, target=target))
    layers, era = layers_of_model(model)[0], Era(first_step=0, last_step=1)
    pruner = Pruner(model, layers, conv=pruning.conv, linear=pruning.linear, target=target, era=era)
    return [row.left for row in plan_layers(pruner, pruning, {})]


def test_depthwise_kernels_that_compete_with_one_another() -> None:
    assert plan("ck:depthwise=true", 0.5) == [162, 54, 120]
    with pytest.raises(BadOption, match=r"leaves nothing of 0, 1; at most --target 0\.916 leaves something"):
        plan("ck:depthwise=true", 0.95)
