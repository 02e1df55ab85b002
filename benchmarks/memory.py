"""Measures the peak memory of training, recipe by recipe: dense, and with masks in the era.

    python benchmarks/memory.py [--recipes digits,cifar10] [--out FILE]
    python benchmarks/memory.py --device cuda --out docs/results/gpu-memory.json

A few steps of `starfire train` on images made here, each run in a process of its own: in float32 on a CPU (the most
that the process held, Python, torch and images included, workers not counted) and in bfloat16 on CUDA (the most that
tensors took, as `memory_bytes` in a run's metrics has it). GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from _common import Results
from input import make

from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.recipes import RECIPES
from starfire_cli.workflows.train.request import TrainRequest

STEPS = 3
METHODS = ("dense", "window", "ck")


def one(recipe: str, method: str, device: str, folder: Path) -> int:
    """Bytes, of a run in this process."""
    chosen = RECIPES[recipe]
    side = chosen.image_size or 224
    data = "digits"
    if chosen.data != "digits":
        make(folder / "images", side, side, (STEPS + 1) * chosen.batch_size, different=200)
        data = f"folder:{folder / 'images'}"
    request = TrainRequest(
        data=data,
        recipe=recipe,
        method=method,
        fc="dense" if method == "dense" else "fine",
        epochs=2,
        era="0:2",
        max_steps=STEPS,
        limit_val=chosen.batch_size,
        workers=2,
        device=device,
        cuda_graphs="off",
        out=folder,
    )
    list(train(request, frozenset({"method", "fc", "epochs", "era"})))
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(recipe: str, device: str) -> dict[str, object]:
    """GB by method."""
    chosen, row = RECIPES[recipe], dict[str, float]()
    for method in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--device", device, "--one", recipe, method, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row[method] = round(int(done.stdout.splitlines()[-1]) / 1e9, 2)
    return {"model": chosen.model, "batch": chosen.batch_size, "px": chosen.image_size, "GB": row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    parser.add_argument("--one", nargs=3, metavar=("RECIPE", "METHOD", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        recipe, method, folder = args.one
        print(one(recipe, method, args.device, Path(folder)))
        return
    results = Results(args.out, torch.device(args.device))
    for recipe in args.recipes.split(","):
        results.attempt(recipe, lambda recipe=recipe: measured(recipe, args.device))
    sys.exit(bool(results.failed))


if __name__ == "__main__":
    main()
