"""Measures a training run with `--sparse-compute auto` beside one with `off`: seconds of each part, memory, accuracy.

    python benchmarks/sparse_run.py --data cifar10:PATH [--target 0.8] [--epochs 10] [--limit-train 12800] [--seeds 0,1]

Both runs are `starfire train` with the cifar10 recipe (dense start, era, fixed mask, validation after each epoch), one
after the other with all threads; the order changes from seed to seed. Seconds are those of metrics.jsonl: decoding,
validation and saving are in them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _common import Results

from starfire_cli.formats.run import Run

WAYS = ("off", "auto")


def trained(out: Path, way: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run's seconds by part, and how it ended."""
    options = {
        **{"data": given.data, "recipe": "cifar10", "method": given.method, "target": given.target, "seed": seed},
        **{"epochs": given.epochs, "limit-train": given.limit_train, "limit-val": given.limit_val, "workers": 0},
        **{"device": "cpu", "sparse-compute": way, "out": out, "name": way},
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "starfire_cli", "train", *words]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        printed = process.stdout.read() if process.stdout is not None else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(printed[-2000:])
    rows = Run(out / way).read_metrics()
    first, last = Run(out / way).read_config()["pruning"]["era"]
    parts = {"dense": 0.0, "era": 0.0, "fixed": 0.0}
    for row in rows:
        parts["dense" if row["epoch"] <= first else "era" if row["epoch"] <= last else "fixed"] += row["seconds"]
    return {
        "seconds": round(rows[-1]["elapsed_seconds"], 1),
        "seconds_by_part": {name: round(taken, 1) for name, taken in parts.items()},
        "MiB": round(used.ru_maxrss / 1024),
        "val_top1": rows[-1]["val_top1"],
        "sparsity": rows[-1]["sparsity_prunable"],
        "said": [line for line in printed.splitlines() if "sparse compute" in line],
    }


def compared(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Both runs of a seed, and how many times faster the sparse one is."""
    with tempfile.TemporaryDirectory() as folder:
        order = WAYS if seed % 2 == 0 else WAYS[::-1]
        found = {way: trained(Path(folder), way, seed, given) for way in order}
    dense, sparse = found["off"], found["auto"]
    by_part = {n: round(s / sparse["seconds_by_part"][n], 2) for n, s in dense["seconds_by_part"].items()}
    return found | {"speedup": round(dense["seconds"] / sparse["seconds"], 3), "speedup_by_part": by_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="cifar10:PATH")
    parser.add_argument("--method", default="ck")
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit-train", type=int, default=12_800)
    parser.add_argument("--limit-val", type=int, default=2000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=Path("docs/results/sparse-run.json"))
    given = parser.parse_args()
    results = Results(given.out, torch.device("cpu"))
    for seed in given.seeds.split(","):
        name = f"{given.method} {given.target:g}, {given.limit_train} images, {given.epochs} epochs, seed {seed}"
        results.step(name, lambda seed=int(seed): compared(seed, given))  # type: ignore[misc]


if __name__ == "__main__":
    main()
