"""What does pruning cost a training step? ResNet50 on random images: dense, in the era, after it; images/s and shares.

python benchmarks/gpu/overhead.py --device cuda --out docs/results/gpu-overhead.json
python benchmarks/gpu/overhead.py --device cpu --tiny --out /tmp/o.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from _common import Results, _wait

from starfire_cli.models import build_model
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.era import Era


def steps_of(
    model: str, method: str, batch: int, size: int, device: torch.device, era_steps: int
) -> Callable[[], float]:
    """A function that does one training step and says how long it took."""
    torch.manual_seed(0)
    net = build_model(model, num_classes=1000, image_size=size).to(device)
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
    layers, _ = layers_of_model(net)
    fc = "dense" if method == "dense" else "fine"
    pruner = Pruner(
        net,
        layers,
        conv=CONV_METHODS.build(method),
        linear=LINEAR_METHODS.build(fc),
        target=0.6,
        era=Era(first_step=0, last_step=era_steps),
    )
    pruner.attach(optimizer)
    images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    done = 0

    def step() -> float:
        nonlocal done
        _wait(device)
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = torch.nn.functional.cross_entropy(net(images).float(), labels)
        loss.backward()
        pruner.after_backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        pruner.after_step(done)
        _wait(device)
        return time.perf_counter() - started

    return step


def measure(model: str, method: str, batch: int, size: int, device: torch.device, steps: int) -> dict[str, float]:
    """Dense and pruned steps by turns, so that both see the same machine: mean times, since masks change in bursts."""
    dense, pruned = (steps_of(model, m, batch, size, device, steps) for m in ("dense", method))
    for _ in range(2):
        dense()
    times = [(dense(), pruned()) for _ in range(2 * steps)]
    base = statistics.median(d for d, _ in times)
    era, after = times[2:steps], times[steps + 1 :]
    return {
        "dense ms": round(1000 * base, 3),
        "images/s dense": round(batch / base, 1),
        "era %": round(100 * (statistics.mean(p for _, p in era) / statistics.mean(d for d, _ in era) - 1), 2),
        "after %": round(
            100 * (statistics.median(p for _, p in after) / statistics.median(d for d, _ in after) - 1), 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    results = Results(args.out, device)
    cases = [("resnet20", 16, 16, 8)] if args.tiny else [("resnet50", 64, 224, 200), ("resnet50", 256, 224, 60)]
    for model, batch, size, steps in cases:
        for method in ("window", "ck", "intra"):
            name = f"{model}, batch {batch}, {size} px, {method}, era of {steps} steps"
            results.step(name, lambda m=model, k=method, b=batch, s=size, n=steps: measure(m, k, b, s, device, n))


if __name__ == "__main__":
    main()
