"""`--compact-state`: the same training with optimizer state for live weights alone, in memory and in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run
from starfire_cli.pruning.masks import digest
from starfire_cli.workflows.train.optim import OPTIMIZERS
from tests.helpers.together import run


def last(out: Path) -> Checkpoint:
    (folder,) = out.iterdir()
    return load(Run(folder).last, training=True)


def states(checkpoint: Checkpoint) -> list[Tensor]:
    assert checkpoint.training is not None
    entries = checkpoint.training["optimizer"]["state"].values()
    return [value for entry in entries for value in entry.values() if isinstance(value, Tensor) and value.ndim]


@pytest.mark.parametrize(
    "optimizer",
    [name if name in ("sgd", "adam") else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS],
)
def test_what_is_learned_is_the_same_and_state_is_for_live_weights(tmp_path: Path, optimizer: str) -> None:
    more: dict[str, Any] = {"optimizer": optimizer, "lr": 0.002, "clip_grad": 1.0, "ema": 0.9, "weight_decay": 1e-3}
    more |= {"norm_weight_decay": 0.0}
    run(tmp_path / "all", **more)
    run(tmp_path / "live", **more, compact_state=True)
    whole, live = last(tmp_path / "all"), last(tmp_path / "live")
    assert digest(whole.masks or {}) == digest(live.masks or {})
    for key, value in whole.state.items():
        torch.testing.assert_close(live.state[key], value, rtol=1e-4, atol=1e-6)
    dead = sum(int((~mask).sum()) for mask in (whole.masks or {}).values())
    parameters = sum(value.numel() for value in whole.state.values())
    kinds = len(states(whole)) // len(whole.state)  # state tensors a weight
    assert sum(t.numel() for t in states(whole)) == kinds * parameters
    assert sum(t.numel() for t in states(live)) == kinds * (parameters - dead) < kinds * parameters / 2


@pytest.mark.parametrize("stop", [5, 14], ids=["in-era", "after-era"])
def test_stopping_and_resuming_changes_no_bit(tmp_path: Path, stop: int) -> None:
    more: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3, "method": "intra", "compact_state": True}
    run(tmp_path / "whole", **more)
    run(tmp_path / "parts", **more, max_steps=stop)
    run(tmp_path / "parts", resume=Path("auto"))
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert all(torch.equal(value, parts.state[key]) for key, value in whole.state.items())
    assert all(torch.equal(a, b) for a, b in zip(states(whole), states(parts), strict=True))
