"""A small network for the attack tests: convolution, BatchNorm, dropout, linear; trained in a second on the digits."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starfire_cli.data import Data, DataOptions, open_data
from starfire_cli.formats.checkpoint import file as checkpoint
from starfire_cli.models import Normalized


class Scaled(nn.Module):
    """Multiplies by a number that is saved with the weights: 100 saturates the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("by", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


def net(num_classes: int) -> nn.Module:
    """12 channels at 8 x 8, then 4 x 4; written for 16-pixel images."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(16 * 16, num_classes),
        Scaled(),
    )


SPEC = "tests.helpers.attack_toy:net"


@lru_cache(maxsize=1)
def digits() -> Data:
    """The digits, validation in batches of 100."""
    return open_data("digits", DataOptions(batch_size=128, eval_batch_size=100, augment="none"))


@lru_cache(maxsize=4)
def trained(seed: int = 0, steps: int = 60) -> Normalized:
    """Trained for a few epochs; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        info = digits().info
        model = Normalized(net(len(info.classes)), info.mean, info.std)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        done = 0
        for epoch in range(100):
            for images, labels in digits().train.batches(epoch):
                loss = cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += 1
                if done == steps:
                    model.zero_grad()
                    return model.eval()
    raise AssertionError


def saved(path: Path, model: Normalized, *, scale: float = 1.0, **meta: Any) -> Path:
    """A checkpoint of `model` as training writes one; `scale` multiplies its logits."""
    info = digits().info
    state = {k: v.detach().clone() for k, v in model.net.state_dict().items()}
    state["9.by"] = torch.tensor(scale)
    about = {
        "model": {"spec": SPEC, "num_classes": len(info.classes), "image_size": info.image_size},
        "data": info.as_meta(),
        "pruning": {"method": "window", "fc": "fine", "target": 0.6},
        **meta,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, state=state, masks=None, meta=about)
    return path


def val() -> tuple[Tensor, Tensor]:
    """All validation images and labels."""
    batches = list(digits().val.batches(0))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
