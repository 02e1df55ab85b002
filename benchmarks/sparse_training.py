"""Measures whole training steps over live weights beside dense ones and SparseProp's, and their peak of memory.

    python benchmarks/sparse_training.py [--rows resnet50-ck-0.8,...] [--threads N] [--steps N] [--turns N] [--cpu-time]

A step is forward, loss, backward, the masks of the gradients and SGD with momentum. Every contender is a process of its
own that builds the same network with the same masks, makes some steps, and is then timed; contenders take turns, and a
figure is the median over the turns of each turn's fastest step. `--cpu-time` counts the seconds of one thread's
processor in place of the wall clock, for machines on which others work, too.

Dense: torch in both memory formats and with torch.compile. SparseProp (pip install sparseprop): its own swap of layers,
where it is faster, as it measures itself.

As in `starfire train`, torch's idle threads spin for a short time only (GOMP_SPINCOUNT=1000), for all contenders: dense
steps are as fast so, and loops in threads of their own need the cores. The C library's heap keeps what is freed, as
there, too, which makes dense steps faster.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported

import torch
from _common import Results, prune_at_once
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starfire_cli.heap import keep_heap
from starfire_cli.models import build_model
from starfire_cli.pruning import Pruner
from starfire_cli.sparse.training import SparseTraining

SIZES = {"resnet50": (64, 64), "resnet20": (32, 128)}  # pixels, images
ROWS = ("resnet50-ck-0.8", "resnet50-ck-0.9", "resnet20-ck-0.8", "resnet20-ck-0.6", "resnet20-window-2")
CONTENDERS = ("dense", "dense, channels_last", "dense, compiled", "sparseprop", "starfire")
WARM_UP = 2


def pruned(row: str) -> tuple[nn.Module, Pruner, Tensor, Tensor]:
    """A network with random weights, pruned, and a batch."""
    name, method, share = row.split("-")
    pixels, images = SIZES[name]
    torch.manual_seed(0)
    network = build_model(name, num_classes=10 if name == "resnet20" else 200, image_size=pixels).train()
    target = float(share) if method == "ck" else 1 - float(share) / 9
    pruner = prune_at_once(network, method, target)
    return network, pruner, torch.rand(images, 3, pixels, pixels), torch.randint(0, 10, (images,))


def forward_of(contender: str, network: nn.Module, pruner: Pruner, images: Tensor) -> Callable[[Tensor], Tensor]:
    """What a step calls."""
    if contender == "starfire":
        module = SparseTraining(network)
        module.engage({pruner.weights[key]: mask for key, mask in pruner.masks.items()}, len(images))
        module.choose(images.shape[1:])
        return module
    if contender == "dense, compiled":
        return torch.compile(network, dynamic=False)
    if contender == "sparseprop":
        import sparseprop
        from sparseprop.utils import swap_modules_with_sparse

        sparseprop.set_num_threads(torch.get_num_threads())
        return swap_modules_with_sparse(network, tuple(images.shape), inplace=True)
    return network


def one(row: str, contender: str, steps: int, cpu_time: bool) -> dict[str, float]:
    """The fastest step of one contender in milliseconds, and the peak of its memory in MiB."""
    keep_heap()
    network, pruner, images, labels = pruned(row)
    if contender in ("dense, channels_last", "dense, compiled", "starfire"):
        network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        pruner.follow_layout()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward = forward_of(contender, network, pruner, images)
    parameters = forward.parameters() if isinstance(forward, nn.Module) else network.parameters()
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    clock = time.process_time if cpu_time else time.perf_counter
    taken = []
    for _ in range(WARM_UP + steps):
        started = clock()
        cross_entropy(forward(images), labels).backward()
        if contender != "sparseprop":  # which has no gradients of dead weights
            pruner.after_backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        taken.append(clock() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ms": 1000 * min(taken[WARM_UP:]), "MiB": peak / 1024, "MiB before": before / 1024}


def row_of(row: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All contenders of a row, in turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in args.contenders.split(";")}
    for _ in range(args.turns):
        for name, turns in found.items():
            command = [sys.executable, __file__, "--one", name, "--rows", row, "--steps", str(args.steps)]
            command += ["--threads", str(args.threads), *(["--cpu-time"] if args.cpu_time else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{row}: {name}: {(done.stderr.splitlines() or ['?'])[-1]}", file=sys.stderr)
                continue
            turns.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{row}: {name}: {turns[-1]['ms']:.0f} ms, {turns[-1]['MiB']:.0f} MiB", file=sys.stderr)
    medians = {
        name: {what: round(statistics.median(turn[what] for turn in turns), 1) for what in turns[0]}
        for name, turns in found.items()
        if turns
    }
    dense = [figures["ms"] for name, figures in medians.items() if name.startswith("dense")]
    for figures in medians.values():
        figures["times the best dense"] = round(min(dense) / figures["ms"], 2) if dense else float("nan")
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="NETWORK-ck-SPARSITY or NETWORK-window-WEIGHTS LEFT")
    parser.add_argument("--contenders", default=";".join(CONTENDERS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("sparse_training.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(one(args.rows, args.one, args.steps, args.cpu_time)))
        return
    results = Results(args.out, torch.device("cpu"))
    for row in args.rows.split(","):
        results.step(row, lambda row=row: row_of(row, args))


if __name__ == "__main__":
    main()
