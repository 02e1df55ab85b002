"""Measures what pruning costs a training step of ResNet50 on random images: dense, in the era and after it; images/s
and shares.

    python benchmarks/gpu/overhead.py --device cuda --out docs/results/gpu-overhead.json
    python benchmarks/gpu/overhead.py --device cpu --tiny --out /tmp/o.json

Dense and pruned networks take turns of a few steps, each turn timed as a whole: a GPU is waited for at its end only, as
in training. The era has 1000 steps, the turns begin in its middle; shares are of the dense turns beside them, medians.
Where the host is hardly faster than the GPU, as at batch 64, they also tell of the host's haste; so on CUDA single
steps are timed on the device as well, all of their launches waiting in its queue: "device", means.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from _common import Results, gpu_arguments, wait

from starfire_cli.models import build_model
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era

ERA = 1000  # steps; two thirds of an epoch of Tiny-ImageNet at batch 64, where the paper's era has ten epochs
TURN = 10  # steps
AHEAD = 100_000_000  # cycles of the GPU that the host has to fill its queue: some 50 ms


class Network:
    """A network that trains on one random batch, pruned from step `ERA` / 2 of the era on."""

    def __init__(self, model: str, method: str, batch: int, size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.net = build_model(model, num_classes=1000, image_size=size).to(device)
        self.net.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
        layers, _ = layers_of_model(self.net)
        self.pruner = Pruner(
            self.net,
            layers,
            conv=CONV_METHODS.build(method),
            linear=LINEAR_METHODS.build("dense" if method == "dense" else "fine"),
            target=0.6,
            era=Era(first_step=0, last_step=ERA),
        )
        self.pruner.attach(self.optimizer)
        self.images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(1000, (batch,), device=device)
        self.device, self.at = device, ERA // 2
        self.pruner.after_step(self.at)

    def step(self) -> None:
        amp = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")
        with amp:
            loss = torch.nn.functional.cross_entropy(self.net(self.images).float(), self.labels)
        loss.backward()
        self.pruner.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.at += 1
        self.pruner.after_step(self.at)

    def turn(self) -> float:
        """Seconds a step."""
        wait(self.device)
        started = time.perf_counter()
        for _ in range(TURN):
            self.step()
        wait(self.device)
        return (time.perf_counter() - started) / TURN

    def on_device(self) -> float:
        """Milliseconds that a step takes the GPU, whose launches are all there before it begins."""
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(AHEAD)  # type: ignore[no-untyped-call]
        started.record()
        self.step()
        ended.record()
        ended.synchronize()
        return float(started.elapsed_time(ended))


def on_device(pruned: Network, dense: Network, steps: int) -> tuple[float, float]:
    """Milliseconds of a dense step, and what pruning adds, in %; means of steps that take turns."""
    pairs = [(dense.on_device(), pruned.on_device()) for _ in range(steps)]
    base, more = (statistics.mean(times) for times in zip(*pairs, strict=True))
    return base, 100 * (more / base - 1)


def measure(pruned: Callable[[], Network], dense: Network, turns: int) -> dict[str, float]:
    """Milliseconds of a dense step, and what pruning adds to it in the era and after, in %."""
    network, batch = pruned(), len(dense.images)
    network.turn(), dense.turn()
    found: dict[str, float] = {}
    for name in ("era", "after"):
        pairs = [(dense.turn(), network.turn()) for _ in range(turns)]
        base = statistics.median(d for d, _ in pairs)
        found |= {"dense ms": round(1000 * base, 3), "images/s dense": round(batch / base, 1)}
        found[f"{name} %"] = round(100 * (statistics.median(p / d for d, p in pairs) - 1), 2)
        if dense.device.type == "cuda":
            ms, share = on_device(network, dense, 3 * turns)
            found |= {"dense device ms": round(ms, 3), f"{name} device %": round(share, 2)}
        if name == "era":
            network.at = ERA - 1
            network.turn()
    return found | {"kernels": network.pruner.kernels}  # type: ignore[dict-item]


def main() -> None:
    args = gpu_arguments(__doc__)
    device = torch.device(args.device)
    results = Results(args.out, device)
    cases = [("resnet20", 16, 16, 2)] if args.tiny else [("resnet50", 64, 224, 9), ("resnet50", 256, 224, 3)]
    for model, batch, size, turns in cases:
        names = {m: f"{model}, batch {batch}, {size} px, {m}, era of {ERA} steps" for m in ("window", "ck", "intra")}
        if all(name in results.rows for name in names.values()):
            continue
        dense = Network(model, "dense", batch, size, device)
        for method, name in names.items():
            make = lambda k=method, m=model, b=batch, s=size: Network(m, k, b, s, device)  # noqa: E731
            results.step(name, lambda make=make, dense=dense, turns=turns: measure(make, dense, turns))


if __name__ == "__main__":
    main()
