"""Times Python's work on masks and gradients at a training step on a GPU. Runs anywhere: nothing goes to the device.

    python benchmarks/gpu/host.py --out docs/results/host.json

ResNet50, an era of 1000 steps, and after it; medians of turns of a hundred steps, on one core. A launch of a CUDA graph
and a copy of a kilobyte come on top of it, and at each step the launch of a kernel.
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
from starfire_cli.pruning.era_masks import EraMasks
from starfire_cli.pruning.kernels.gpu import gradient_masking
from starfire_cli.pruning.kernels.triton import TritonKernels, TritonLayers

TURNS = 5


class Nothing:
    """In place of a CUDA graph."""

    def replay(self) -> None:
        pass


def microseconds(method: str, first: int) -> float:
    """A step of the pruner from step `first` on, with Triton's masks, nothing launched."""
    optimizer, pruner = in_training("torch", method, "resnet50", torch.device("cpu"))
    gradients = [(weight, weight.grad) for group in optimizer.param_groups for weight in group["params"]]
    masks = pruner._masks
    assert isinstance(masks, EraMasks)
    masks._kernels = pruner._kernels = pruner._tensors._kernels = TritonKernels()
    step, taken = first, []
    zeros = PropertyMock(return_value={})
    standing = patch.multiple(TritonLayers, _launch=lambda *_: None, _captured=lambda *_: Nothing())
    eager = patch.object(torch.cuda, "is_current_stream_capturing", lambda: False)
    quiet = patch.object(gradient_masking, "_launch_kernel", lambda launch: None)
    with standing, eager, quiet, patch.object(Pruner, "zeros", zeros):
        optimizer.zero_grad()
        pruner.after_step(ERA // 4)
        assert masks._prepared is not None
        masks._prepared[1]._graphs = True  # type: ignore[attr-defined]
        for _ in range(1 + TURNS):
            spent = 0.0
            for _ in range(100):
                step += 1
                for weight, gradient in gradients:
                    weight.grad = gradient
                started = time.perf_counter()
                pruner.after_backward()
                spent += time.perf_counter() - started
                optimizer.zero_grad()
                started = time.perf_counter()
                pruner.after_step(step)
                spent += time.perf_counter() - started
            taken.append(spent / 100)
    return round(1e6 * statistics.median(taken[1:]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(args.out, torch.device("cpu"))
    for method in ("window", "ck", "intra"):
        for name, first in (("in the era", ERA // 4), ("after it", ERA)):
            title = f"resnet50, {method}, {name}, microseconds a step"
            results.step(title, lambda method=method, first=first: microseconds(method, first))


if __name__ == "__main__":
    main()
