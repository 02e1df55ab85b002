"""Where a run happens: device, precision, seeds, determinism, and which rank of how many this process is."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starfire_cli.errors import BadOption

if TYPE_CHECKING:
    import torch


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU; any torch device name works. Raises BadOption."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadOption(f"--device {name!r} is no torch device; try auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadOption(
            f"--device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices here; --device cpu works"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadOption(f"--device {name!r}: there is no MPS device here; --device cpu works")
    return device


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Seed python, numpy and torch; `deterministic` also asks torch for deterministic kernels only."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def rank() -> tuple[int, int]:
    """This process's rank and the number of ranks, from the environment that torchrun sets."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def versions() -> dict[str, str]:
    """What a run was made with, as plain strings."""
    import torch
    import torchvision

    import starfire_cli

    return {
        "starfire": starfire_cli.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def processor() -> str:
    """The CPU's name, and the widest vectors that torch uses on it: `AMD EPYC, AVX512`."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def hardware(device: torch.device) -> dict[str, Any]:
    """What a run was made on: device name and threads."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": str(device), "name": name, "threads": torch.get_num_threads()}
