"""Profiles what pruning launches on the device at each step, and whether anything waits for it, beside the dense step.

    python benchmarks/gpu/launches.py --device cuda --out docs/results/gpu-launches.json
    python benchmarks/gpu/launches.py --device cpu --tiny --out /tmp/l.json  # the same, small, of operators on a CPU

The networks are those of `overhead.py`, in the middle of an era of 1000 steps and after it. Of each step, means:
what pruning adds by kernel (microseconds of the device, how many launches), the device's time with and without pruning,
the calls of CUDA that wait for the device ("waits"), and the host's time in the pruner.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from _common import Results, gpu_arguments, wait
from overhead import ERA, Network

STEPS = 20
WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Profile:
    """Of `STEPS` steps, per step: microseconds and launches by kernel, and how often the host waited."""

    def __init__(self, network: Network) -> None:
        on_device = network.device.type == "cuda"
        network.step()
        wait(network.device)
        before = network.pruner.seconds
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]) as seen:
            for _ in range(STEPS):
                network.step()
        self.host_us = round((network.pruner.seconds - before) / STEPS * 1e6, 1)
        self.us: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.waits = 0
        for event in seen.events() or []:
            if event.name in WAITING:  # the profile ends with one of its own
                self.waits += 1
            if on_device == (event.device_type == torch.autograd.DeviceType.CUDA):
                self.us[event.name[:60]] += event.self_device_time_total if on_device else event.self_cpu_time_total
                self.launches[event.name[:60]] += 1

    def beside(self, dense: Profile) -> dict[str, object]:
        """What is more than the dense network's."""
        kernels = {
            name: {
                "us": round((us - dense.us[name]) / STEPS, 2),
                "launches": round((self.launches[name] - dense.launches[name]) / STEPS, 2),
            }
            for name, us in self.us.most_common()
            if self.launches[name] > dense.launches[name]
        }
        return {
            "dense us": round(dense.us.total() / STEPS, 1),
            "pruned us": round(self.us.total() / STEPS, 1),
            "host us": self.host_us,
            "waits": self.waits,
            "dense waits": dense.waits,
            "kernels": kernels,
        }


def main() -> None:
    args = gpu_arguments(__doc__)
    device = torch.device(args.device)
    results = Results(args.out, device)
    case = ("resnet20", 16, 16) if args.tiny else ("resnet50", 64, 224)
    dense = Profile(Network(case[0], "dense", *case[1:], device))
    for method in ("window", "ck", "intra"):
        network = Network(case[0], method, *case[1:], device)
        for _ in range(3):  # whatever is compiled or captured
            network.step()
        results.step(f"{method}, in the era", lambda network=network: Profile(network).beside(dense))
        network.at = ERA - 1
        network.step()
        results.step(f"{method}, after it", lambda network=network: Profile(network).beside(dense))


if __name__ == "__main__":
    main()
