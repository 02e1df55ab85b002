"""Measures what several processes cost the training of a ResNet50, and what fixed masks save it.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/ranks.py [--out FILE.json]

Each figure is the median of --repeat on rank 0. "step" is forward and backward of two images of 32 px with its exchange
of gradients: next to no computation, so that the exchange shows. The optimizer's step is timed with and without
--compact-state, on the same network. Between processes of one machine gradients travel through memory; a network that
is slower gains more from sending less.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from _common import median_ms, prune_at_once, seconds, where

from starfire_cli import runtime
from starfire_cli.distributed.agreement import Agreement
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.distributed.replica import Replica
from starfire_cli.workflows.train.compact_state import CompactState
from starfire_cli.workflows.train.optimizers import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = runtime.pick_device("auto", runtime.world())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = Ranks(runtime.world())
    if ranks.count == 1:
        parser.error("there is one process only; torchrun --nproc-per-node 2 benchmarks/ranks.py starts two")
    ranks.join()
    found = measured(ranks, device, asked.target, asked.repeat)
    ranks.leave()
    if ranks.first:
        text = json.dumps({"where": where(device), "processes": ranks.count, "target": asked.target, **found}, indent=2)
        print(text)
        if asked.out:
            asked.out.write_text(text + "\n")


def measured(ranks: Ranks, device: torch.device, target: float, repeat: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = torchvision.models.resnet50().to(device).to(memory_format=torch.channels_last)
    pruner = prune_at_once(net, "ck", target)
    agreement, replica = Agreement(ranks, pruner), Replica(net, device)
    images = torch.randn(2, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer("adam", net, lr=0.0, weight_decay=0.0, momentum=0.9, nesterov=False, betas=(0.9, 0.999))

    def timed(run: Callable[[], object], repeats: int = repeat) -> float:
        return median_ms(seconds(run, device=device, repeats=repeats))

    def step() -> None:
        net.zero_grad(set_to_none=True)
        replica.module(images).sum().backward()

    found: dict[str, Any] = {
        "signal_ms": timed(lambda: ranks.stop(0), 200),
        "counts_ms": timed(agreement.counts, 200),
        "masks_ms": timed(agreement.masks),
        "step_all_ms": timed(step),
    }
    sending = replica.sending
    found["bytes_all"] = sending.whole // sending.steps
    sending.leave_out(pruner.weights, pruner.masks)
    before = sending.steps, sending.sent
    found["step_live_ms"] = timed(step)
    found["bytes_live"] = (sending.sent - before[1]) // (sending.steps - before[0])
    found["adam_ms"], found["adam_bytes"] = timed(optimizer.step), _state(optimizer)
    compact = CompactState(
        optimizer, pruner.weights, pruner.masks, compiled=pruner.kernels == "numba", reads_gradients=False
    )
    gradients = {p: p.grad for p in net.parameters()}

    def compactly() -> None:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        compact.gather()
        compact.step()
        optimizer.step()
        compact.scatter()

    found["adam_compact_ms"], found["adam_compact_bytes"] = timed(compactly), _state(optimizer)
    return found


def _state(optimizer: torch.optim.Optimizer) -> int:
    return sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))


if __name__ == "__main__":
    sys.exit(main())
