"""What an attached pruner says of frozen layers, targets that are not met, files saved too early, and wrong facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import starfire_cli as starfire
from starfire_cli.errors import BadOption


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(4))


def ready(side: int = 8) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = network()
    model(torch.zeros(1, 3, side, side))
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()


def test_frozen_layers_are_left_alone_and_listed() -> None:
    model, optimizer = ready()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    pruner = starfire.attach(model, optimizer, method="ck", target=0.5, era=(0.0, 0.5), total_steps=4)
    steps(model, optimizer, 4)
    assert torch.equal(model[0].weight, before)
    assert ("0", "it is frozen (requires_grad=False)") in pruner.summary().left_out
    assert pruner.sparsity >= 0.5


def test_a_target_that_is_not_met_is_said() -> None:
    model, optimizer = ready()
    with pytest.warns(UserWarning, match=r"target=0.6: method='ssl' meets none"):
        starfire.attach(model, optimizer, method="ssl", target=0.6, total_steps=4)


def test_a_file_that_is_saved_too_early_is_said(tmp_path: Path) -> None:
    model, optimizer = ready()
    pruner = starfire.attach(model, optimizer, method="ck", target=0.5, era=(0.25, 0.75), total_steps=8)
    steps(model, optimizer, 3)
    with pytest.warns(UserWarning, match=r"step 3 and the era is 2:6"):
        starfire.save(tmp_path / "early.pt", pruner)
    steps(model, optimizer, 5)
    with torch.no_grad():
        model[4].bias[0] = float("nan")
    with pytest.warns(UserWarning, match=r"4\.bias: weights are NaN"):
        starfire.save(tmp_path / "late.pt", pruner)


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("net.safetensors", {}, r"writes a \.pt file"),
        ("net.pt", {"mean": (0.5, 0.5, 0.5)}, "mean and std belong together"),
        ("net.pt", {"metrics": {"val_top1": 91.0}}, "val_top1=91 is no fraction"),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path: Path, name: str, facts: dict[str, Any], words: str) -> None:
    model, optimizer = ready()
    pruner = starfire.attach(model, optimizer, method="ck", target=0.5, era_steps=(0, 1))
    steps(model, optimizer, 1)
    with pytest.raises(BadOption, match=words):
        starfire.save(tmp_path / name, pruner, **facts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "0.8"}, "target='0.8' is a str; a number works, such as 0.8"),
        ({"seed": "a"}, "seed='a' is a str"),
        ({"method": None}, "method=None is a NoneType"),
        ({"loss": 5, "method": "snip"}, "loss=5 is no function"),
        ({"method": "snip", "era": (0.2, 0.6)}, "leave era out"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(options: dict[str, Any], words: str) -> None:
    model, optimizer = ready()
    with pytest.raises(BadOption, match=words) as refused:
        starfire.attach(model, optimizer, total_steps=10, **options)
    assert "\n" not in str(refused.value)


def test_inspect_wants_a_path() -> None:
    with pytest.raises(BadOption, match="path is a Sequential"):
        starfire.inspect(network())  # type: ignore[call-overload]
