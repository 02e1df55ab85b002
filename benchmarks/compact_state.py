"""Measures the optimizer's step of a ResNet50 once its masks are fixed: dense, and with --compact-state.

    python benchmarks/compact_state.py [--out docs/results/compact-state.json]

Turns of one step each, gradients at hand; medians, milliseconds. "dense" is torch's fused optimizer and what keeps dead
weights dead, the gradients' masks; "compact" is the step of live weights alone, which needs no masks, with numba and
with numpy. --threads 1 counts the thread's own time, which does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from _common import prune_at_once, where

from starfire_cli.workflows.train.compact_state import CompactState
from starfire_cli.workflows.train.optimizers import build_optimizer

WAYS = ("step", "masks", "compact, numba", "compact, numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=float, nargs="*", default=[0.8, 0.9])
    parser.add_argument("--optimizers", nargs="*", default=["sgd", "adam", "adamw"])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = {f"{o}, ck {t:g}": measured(o, t, asked.turns) for o in asked.optimizers for t in asked.targets}
    text = json.dumps({"where": where(torch.device("cpu")), "turns": asked.turns, "rows": rows}, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


def measured(name: str, target: float, turns: int) -> dict[str, Any]:
    """Median milliseconds of each way, and the bytes of what is kept."""
    dense, compact = _Network(name, target), [_Network(name, target, compiled=c) for c in (True, False)]
    runs = (dense.step, dense.pruner.mask_gradients, *(one.compact_step for one in compact))
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for turn in range(turns + 2):
        for one in (dense, *compact):
            one.set_gradients()
        for way, run in zip(WAYS, runs, strict=True):
            started = now()
            run()
            if turn > 1:
                taken[way].append(now() - started)
    live = compact[0].live
    assert live is not None
    found: dict[str, Any] = {f"{way} ms": round(1000 * statistics.median(t), 1) for way, t in taken.items()}
    found |= {f"{way} ms, least": round(1000 * min(t), 1) for way, t in taken.items()}
    return found | {
        "state, dense bytes": dense.state_bytes(),
        "state, compact bytes": compact[0].state_bytes(),
        "index bytes": live.index_bytes,
    }


class _Network:
    def __init__(self, name: str, target: float, *, compiled: bool | None = None) -> None:
        torch.manual_seed(0)
        self.net = torchvision.models.resnet50().to(memory_format=torch.channels_last)
        self.pruner = prune_at_once(self.net, "ck", target)
        settings: dict[str, Any] = {"weight_decay": 1e-4, "momentum": 0.9, "nesterov": True, "betas": (0.9, 0.999)}
        self.optimizer = build_optimizer(name, self.net, lr=1e-6, **settings)
        self.step: Callable[[], object] = self.optimizer.step
        self._gradients = {p: torch.randn_like(p) * 1e-3 for p in self.net.parameters()}
        self.live: CompactState | None = None
        if compiled is not None:
            self.live = CompactState(
                self.optimizer, self.pruner.weights, self.pruner.masks, compiled=compiled, reads_gradients=False
            )

    def set_gradients(self) -> None:
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient

    def compact_step(self) -> None:
        assert self.live is not None
        self.live.gather()
        self.live.step()
        self.optimizer.step()
        self.live.scatter()

    def state_bytes(self) -> int:
        states = self.optimizer.state.values()
        return sum(v.nbytes for state in states for v in state.values() if isinstance(v, torch.Tensor))


if __name__ == "__main__":
    main()
