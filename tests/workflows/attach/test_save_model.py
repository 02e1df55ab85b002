"""The name of a model in a saved file: it must rebuild these weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import starfire_cli as starfire
from starfire_cli.errors import BadOption
from starfire_cli.models import build_model
from tests.workflows.attach.loops import made, trained


def pruned(classes: int = 7) -> Any:
    model = build_model("resnet20", num_classes=classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = starfire.attach(model, optimizer, method="ck", target=0.5, era_steps=(0, 1))
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    return pruner


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"model": "resnet32"}, r"does not fit model='resnet32': layer1\.3\.conv1\.weight is missing"),
        ({"model": "resnet20", "num_classes": 10}, r"linear\.weight is \(7, 64\) in the file, \(10, 64\) in the model"),
        ({"model": "resnet20", "classes": list("abc")}, r"\(7, 64\) in the file, \(3, 64\)"),
        ({"model": "resnet2"}, "unknown model 'resnet2'"),
        ({"model": 3}, "model=3 is an int; a text works, such as 'resnet50'"),
        ({"num_classes": "7"}, "num_classes='7' is a str; a whole number works"),
        ({"image_size": 0}, "image_size=0 is no whole number"),
        ({"mean": (1, 2, 3), "std": (1, 1, 1)}, r"mean=\(1, 2, 3\) is not three numbers from 0 to 1"),
    ],
)
def test_a_model_that_these_weights_are_not_of_is_refused(tmp_path, facts, message):
    with pytest.raises(BadOption, match=message) as caught:
        starfire.save(tmp_path / "model.pt", pruned(), **facts)
    assert not list(tmp_path.iterdir())
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


@pytest.fixture(scope="module")
def seven() -> Any:
    return pruned()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"classes": ["a", "a", *"bcdef"]}, "classes: 'a' names labels 0, 1; reports cannot tell them apart"),
        ({"classes": list("abc")}, "classes names 3, and the last layer of the network, linear, gives 7 logits"),
        ({"num_classes": 9}, "num_classes is 9, and the last layer"),
        ({"metrics": {"loss": float("nan"), "val_top1": 0.5}}, "metrics: loss=nan is left out of the file"),
        ({"metrics": {"a": np.float32("inf"), "b": torch.tensor(-torch.inf)}}, "a=inf, b=-inf are left out"),
    ],
)
def test_facts_that_are_odd_are_warned_of_and_the_network_is_saved(tmp_path, seven, facts, message):
    with pytest.warns(UserWarning, match=message) as said:
        path = starfire.save(tmp_path / "model.pt", seven, **facts)
    assert len(said) == 1
    metrics = torch.load(path, weights_only=True)["meta"]["metrics"]
    json.dumps(metrics, allow_nan=False)
    assert metrics.keys() >= {name for name, value in facts.get("metrics", {}).items() if value == 0.5}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"classes": ["a", ""]}, "has no name for a label"),
        ({"classes": []}, "has no name for a label"),
        ({"image_size": 1}, "image_size=1 is out of range: pixels a side, 2 to 16384"),
        ({"mean": "0.5", "std": 1}, "mean='0.5' is not three numbers from 0 to 1, or one for all channels"),
        ({"mean": torch.ones(2), "std": 1}, "is not three numbers"),
        ({"mean": True, "std": 1}, "mean=True is not three numbers"),
        ({"mean": 0.5, "std": [0.5, float("nan"), 0.5]}, "std=.* is not three numbers above 0"),
    ],
)
def test_facts_that_no_command_could_read_are_refused(tmp_path, seven, facts, message):
    with pytest.raises(BadOption, match=message):
        starfire.save(tmp_path / "model.pt", seven, **facts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (torch.full((3, 1, 1), 0.5), np.full(3, 0.25)),
        ([np.float32(0.5)] * 3, [0.25] * 3),
        (0.5, [0.25]),
        (np.float64(0.5), torch.tensor(0.25)),
    ],
)
def test_mean_and_std_come_in_many_shapes(tmp_path, seven, mean, std):
    metrics: Any = {"val_top1": torch.tensor(0.5)}
    path = starfire.save(tmp_path / "model.pt", seven, mean=mean, std=std, metrics=metrics)
    meta = torch.load(path, weights_only=True)["meta"]
    assert (meta["data"]["mean"], meta["data"]["std"], meta["metrics"]["val_top1"]) == ([0.5] * 3, [0.25] * 3, 0.5)


def test_a_network_of_grey_images_is_told_from_one_of_another_size(tmp_path, monkeypatch):
    (tmp_path / "grey_net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = __import__("grey_net").build(5)
    pruner = starfire.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method="dense")
    path = starfire.save("model.pt", pruner, mean=0.5, std=0.25, num_classes=5, image_size=8)
    with pytest.raises(BadOption, match=r"'grey_net:build' takes images of 1 channel; here images have three"):
        starfire.load_model(path, model="grey_net:build")


def test_the_weights_tell_the_number_of_classes(tmp_path):
    pruner = pruned()
    path = starfire.save(tmp_path / "model.pt", pruner, model="resnet20", mean=(0.5,) * 3, std=(0.2,) * 3)
    model = starfire.load_model(path)
    images = torch.rand(2, 3, 32, 32)
    expected = pruner.network.eval()((images - 0.5) / 0.2)
    assert torch.allclose(model(images), expected, atol=1e-5)


def test_code_of_ones_own_is_written_down_and_not_run(tmp_path):
    path = starfire.save(tmp_path / "model.pt", pruned(), model="no_such_module:build", num_classes=7)
    with pytest.raises(BadOption, match="whose code is not run unasked"):
        starfire.load_model(path)


@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_an_average_that_nobody_updates_is_said(tmp_path, updated, bias):
    model, optimizer = made() if bias else bare()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    pruner = starfire.attach(model, optimizer, method="gmp", target=0.5, era_steps=(2, 10), ema=average)
    trained(model, optimizer)
    if updated:
        average.update_parameters(model)
        starfire.save(tmp_path / "model.pt", pruner)
    else:
        with pytest.warns(UserWarning, match="ema was never updated in 12 steps"):
            starfire.save(tmp_path / "model.pt", pruner)


def bare() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network whose every parameter is pruned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(200, 4, bias=False))
    return model, torch.optim.SGD(model.parameters(), lr=0.05)


def test_an_optimizer_that_never_stepped_is_said(tmp_path):
    pruner = starfire.attach(*made(), method="gmp", target=0.5, era_steps=(2, 10))
    with pytest.warns(UserWarning, match="no step was seen, as where another optimizer trains the model"):
        starfire.save(tmp_path / "model.pt", pruner)
