"""Code shared by the benchmarks: a description of the machine, medians, and results as JSON that grow step by step."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parent.parent))  # the checkout, installed or not
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.kernels import installed
from starfire_cli.pruning.schedule import Era


def where(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, to go with every figure."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": version("triton") if gpu and installed("triton") else None,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """What is measured, "-dirty" if something of it is not committed; None outside of a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def gpu_arguments(doc: str | None) -> argparse.Namespace:
    """What the command line says: `device`, `tiny` (something that a CPU does in no time) and `out`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def method_arguments(doc: str | None, methods: Sequence[str], out: str) -> argparse.Namespace:
    """The arguments of a benchmark of methods beside a training step: what is trained, how often, where figures go."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=list(methods))
    parser.add_argument("--out", type=Path, default=Path(out))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def prune_at_once(net: nn.Module, method: str, target: float, *, fc: str = "fine") -> Pruner:
    """The pruner of a network whose weights have just been pruned to `target`, in one evaluation."""
    pruner = Pruner(
        net,
        layers_of_model(net)[0],
        conv=CONV_METHODS.build(method),
        linear=LINEAR_METHODS.build(fc),
        target=target,
        era=Era(first_step=0, last_step=1),
    )
    pruner.refresh(1.0)
    return pruner


def seconds(run: Callable[[], object], *, device: torch.device, repeats: int, warmup: int = 2) -> list[float]:
    """How long each of `repeats` calls took; a GPU is waited for."""
    taken = []
    for number in range(warmup + repeats):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        if number >= warmup:
            taken.append(time.perf_counter() - started)
    return taken


def median_ms(taken: list[float]) -> float:
    """The median in milliseconds."""
    return round(1000 * statistics.median(taken), 4)


class Results:
    """A JSON file of named results; what is in it already is not done again."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self._where = where(device)
        self.failed: list[str] = []

    def attempt(self, name: str, run: Callable[[], Any]) -> None:
        """`step`, but what goes wrong is told and noted in `failed`, and the next step has its turn."""
        try:
            self.step(name, run)
        except Exception:  # noqa: BLE001 - a lent GPU's time is short, and steps do not need each other
            traceback.print_exc()
            print(f"{name}: FAILED", flush=True)
            self.failed.append(name)

    def step(self, name: str, run: Callable[[], Any]) -> Any:
        """Do one step unless it is done, print what came out, and write the file."""
        if name not in self.rows:
            self.rows[name] = {"result": run(), "where": self._where}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n")
        print(f"{name}: {json.dumps(self.rows[name]['result'])}", flush=True)
        return self.rows[name]["result"]


def wait(device: torch.device) -> None:
    """Wait for a GPU; a CPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
