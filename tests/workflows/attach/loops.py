"""A small network, its batches, and the loop by which attached pruners are tried."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.helpers.pruner_training import batches, network

STEPS = 12
PLAIN = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}


def made(seed: int = 0, kind=torch.optim.SGD, **options) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network(seed)
    return model, kind(model.parameters(), **(options or PLAIN))


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS, start: int = 0, forward=None
) -> None:
    for images, labels in batches(STEPS)[start : start + steps]:
        optimizer.zero_grad()
        cross_entropy((forward or model)(images), labels).backward()
        optimizer.step()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different
