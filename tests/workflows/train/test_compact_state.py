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
from starfire_cli.workflows.train.compact_state import CompactState
from starfire_cli.workflows.train.optimizers import OPTIMIZERS
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


def test_numba_and_torch_train_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    more: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "compact_state": True}
    found = []
    for kernels in ("torch", "numba"):
        run(tmp_path / kernels, **more, kernels=kernels)
        found.append(last(tmp_path / kernels))
    assert all(torch.equal(value, found[1].state[key]) for key, value in found[0].state.items())
    assert all(torch.equal(a, b) for a, b in zip(states(found[0]), states(found[1]), strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("own_steps", [True, False])
def test_a_step_is_the_optimizers_and_leaves_dead_weights_alone(layout: torch.memory_format, own_steps: bool) -> None:
    """Also where gradients lie in memory in another way than their weights."""
    torch.manual_seed(0)
    weights = {name: torch.randn(6, 5, 3, 3).to(memory_format=layout).requires_grad_() for name in "ab"}
    weights = {name: torch.nn.Parameter(w.detach()) for name, w in weights.items()}
    masks = {"a": (torch.rand(6, 5, 3, 3) < 0.4).to(memory_format=layout), "b": torch.ones(6, 5, 3, 3).bool()}
    with torch.no_grad():
        weights["a"] *= masks["a"]
    twins = {name: torch.nn.Parameter(w.detach().clone()) for name, w in weights.items()}
    optimizer, theirs = (torch.optim.Adam(w.values(), lr=0.01, fused=True) for w in (weights, twins))
    compact = CompactState(optimizer, weights, masks, reads_gradients=False, own_steps=own_steps)
    assert compact.index_bytes == 4 * int(masks["a"].sum())
    for _ in range(3):
        for name, weight in weights.items():
            gradient = torch.randn(6, 5, 3, 3)
            weight.grad = gradient.to(memory_format=layout)
            twins[name].grad = gradient.to(memory_format=layout) * masks[name]
        compact.gather()
        compact.step()
        optimizer.step()
        compact.scatter()
        theirs.step()
        assert weights["a"].grad is None
    for name, weight in weights.items():
        torch.testing.assert_close(weight, twins[name], rtol=1e-5, atol=1e-7)
    assert not weights["a"][~masks["a"]].any()
