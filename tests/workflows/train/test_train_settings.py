"""Recipes, schedules and requests: the numbers of the paper, and what happens to them when an option overrides one."""

from __future__ import annotations

import pytest

from starfire_cli.errors import BadOption
from starfire_cli.workflows.train.optimizers import LearningRate
from starfire_cli.workflows.train.recipes import RECIPES, recipe_for
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import fill, pruning_of


def test_the_papers_recipes():
    tiny, v1, v15 = (RECIPES[name] for name in ("tiny-imagenet", "imagenet-v1", "imagenet-v1.5"))
    assert (tiny.model, tiny.epochs, tiny.batch_size, tiny.optimizer, tiny.lr) == ("resnet50-v1", 40, 64, "adam", 1e-3)
    assert (tiny.lr_drops, tiny.weight_decay, tiny.eras[""], dict(tiny.max_nonzero)) == (
        (30,),
        1e-4,
        "0:10",
        {"window": 2},
    )
    assert (v1.model, v1.epochs, v1.batch_size, v1.lr, v1.lr_drops) == ("resnet50-v1", 90, 128, 0.1, (30, 60))
    assert (v1.eras["window"], v1.eras[""]) == ("0:30", "40:60")
    assert (v15.model, v15.epochs, v15.batch_size, v15.lr, v15.lr_drops) == ("resnet50", 100, 64, 0.05, (30, 60, 90))
    assert (v15.eras["window"], v15.eras[""]) == ("30:50", "40:60")
    assert all(r.optimizer == "sgd" and r.momentum == 0.9 and r.weight_decay == 1e-4 for r in (v1, v15))


def test_the_recipe_follows_the_data_unless_named():
    assert recipe_for(None, "digits")[0] == "digits"
    assert recipe_for(None, "folder", 64)[0] == "cifar10"
    assert recipe_for(None, "folder", 500)[0] == "imagenet-v1.5"
    assert recipe_for("tiny-imagenet", "digits")[0] == "tiny-imagenet"


def test_epochs_scale_the_recipes_era_and_drops_but_not_the_users():
    filled = fill(TrainRequest(recipe="tiny-imagenet", epochs=8), "folder", 64)
    assert (filled.era, filled.lr_drops) == ("0:2", (6.0,))
    filled = fill(TrainRequest(recipe="tiny-imagenet", epochs=8, era="1:3", lr_drops=(5,)), "folder", 64)
    assert (filled.era, filled.lr_drops) == ("1:3", (5,))


def test_the_cap_of_a_recipe_comes_only_when_the_recipe_is_named():
    assert fill(TrainRequest(recipe="tiny-imagenet"), "tiny-imagenet", None).max_nonzero == 2
    assert fill(TrainRequest(recipe="tiny-imagenet", method="ck"), "tiny-imagenet", None).max_nonzero is None
    assert fill(TrainRequest(), "tiny-imagenet", None).max_nonzero is None


def test_a_filled_request_survives_its_way_through_json():
    filled = fill(TrainRequest(keep_dense=("fc",), lr_drops=(3, 4)), "digits", None)
    assert TrainRequest.from_config(filled.as_config()) == filled


def test_dense_is_dense_unless_the_linear_layers_were_asked_for():
    pruning = pruning_of(TrainRequest(method="dense"))
    assert (pruning.method_spec, pruning.fc_spec, pruning.target) == ("dense", "dense", 0.0)
    pruning = pruning_of(TrainRequest(method="dense", fc="block:n=2"))
    assert (pruning.fc_spec, pruning.target) == ("block:n=2", 0.6)
    with pytest.raises(BadOption, match="both set the cap"):
        pruning_of(TrainRequest(method="window:max_nonzero=3", max_nonzero=2))


def test_the_learning_rate():
    step = LearningRate(peak=1.0, schedule="step", steps=100, drops=(30, 60))
    assert [step.at(s) for s in (0, 29, 30, 59, 60, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = LearningRate(peak=1.0, schedule="cosine", steps=100, warmup=10, floor=0.1)
    assert cosine.at(9) == 1.0 and cosine.at(10) == 1.0
    assert cosine.at(55) == pytest.approx(0.55) and cosine.at(100) == pytest.approx(0.1)
    rates = [cosine.at(s) for s in range(10)]
    assert rates == sorted(rates) and rates[0] > 0.1
