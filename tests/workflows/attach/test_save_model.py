"""The name of a model in a saved file: it must rebuild these weights."""

from __future__ import annotations

from typing import Any

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
