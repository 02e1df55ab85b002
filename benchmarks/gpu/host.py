"""How long is Python busy with a refresh of all masks on a GPU? Runs anywhere: nothing goes to the device.

    python benchmarks/gpu/host.py --out docs/results/host.json

ResNet50, an era of 1000 steps, its middle; medians of turns of a hundred steps, on one core. A launch of a CUDA graph
and a copy of a kilobyte come on top of it, and at each step one call that masks the gradients.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from unittest.mock import PropertyMock, patch

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from _common import Results
from masks import ERA, in_training

from starfire_cli.pruning import Pruner
from starfire_cli.pruning.kernels.triton import TritonKernels, TritonStanding

TURNS = 5


class Nothing:
    """In place of a CUDA graph."""

    def replay(self) -> None:
        pass


def microseconds(method: str) -> float:
    """A step of the pruner with Triton's masks, nothing launched."""
    optimizer, pruner = in_training("torch", method, "resnet50", torch.device("cpu"))
    optimizer.zero_grad()
    pruner._kernels = TritonKernels()
    step, taken = ERA // 4, []
    zeros = PropertyMock(return_value={})
    standing = patch.multiple(TritonStanding, _launch=lambda *_: None, _captured=lambda *_: Nothing())
    eager = patch.object(torch.cuda, "is_current_stream_capturing", lambda: False)
    with standing, eager, patch.object(Pruner, "zeros", zeros):
        pruner.after_step(step)
        assert pruner._standing is not None
        pruner._standing[1]._graphs = True  # type: ignore[attr-defined]
        for _ in range(1 + TURNS):
            started = time.perf_counter()
            for _ in range(100):
                step += 1
                pruner.after_step(step)
            taken.append((time.perf_counter() - started) / 100)
    return round(1e6 * statistics.median(taken[1:]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(args.out, torch.device("cpu"))
    for method in ("window", "ck", "intra"):
        results.step(f"resnet50, {method}, microseconds a step", lambda method=method: microseconds(method))


if __name__ == "__main__":
    main()
