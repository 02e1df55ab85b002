"""The place of a run: device, precision, seeds, determinism, and this process's rank among how many."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starfire_cli.errors import BadOption, option
from starfire_cli.text import reason
from starfire_cli.version import __version__

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes that train one network together, as described by their launcher.

    Args:
        rank: this process's number among all.
        size: how many they are.
        local_rank: this process's number on its machine.
        launcher: "torchrun" (or anything that sets its variables), "srun", or "" for a process of its own.
        address: where they meet, as `init_process_group` takes it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = ""
    address: str = "env://"


def shorten_spinning() -> None:
    """Let torch's idle threads sleep soon; to be called before torch is imported.

    By default they spin for a millisecond or more after each operation, and loops that run between torch's operations
    in threads of their own (`--sparse-compute`) then share their cores with them. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def world() -> World:
    """This process's place, from the variables of torchrun, else of a `srun` that started several tasks.

    Raises BadOption where they contradict themselves.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, size, local = (_whole(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        found = World(rank=rank, size=size, local_rank=local, launcher="torchrun" if size > 1 else "")
    # Of the step, not of the job: a batch script and a shell in an allocation are one process, as is `srun --pty`.
    elif _whole("SLURM_STEP_NUM_TASKS", 1) > 1 and "SLURM_PROCID" in env and "SLURM_PTY_PORT" not in env:
        rank, size, local = (_whole(f"SLURM_{name}") for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID"))
        host = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", "") or "localhost")
        job, step = _whole("SLURM_JOB_ID"), _whole("SLURM_STEP_ID")
        port = _whole("MASTER_PORT", 20000 + (31 * job + step) % 20000)  # of its own for each step of each job
        found = World(rank=rank, size=size, local_rank=local, launcher="srun", address=f"tcp://{host}:{port}")
    else:
        return World()
    if not 0 <= found.rank < found.size:
        raise BadOption(f"rank {found.rank} of {found.size} processes: RANK and WORLD_SIZE contradict each other")
    return found


def first_host(nodes: str) -> str:
    """The first machine of a list as SLURM writes it: `gpu[003-010,12],cpu1` begins with gpu003."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group() if first else nodes)


def _whole(name: str, default: int = 0) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise BadOption(f"{name}={text!r} in the environment is no whole number") from None


def pick_device(name: str = "auto", world: World | None = None) -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU; any torch device name works.

    Where several processes train together, `auto` and `cuda` give each a CUDA device of its own. Raises BadOption.
    """
    import torch

    world = world or World()
    if world.size > 1:
        name = _device_of_one(name, world)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadOption(
            f"{option('device', name, quoted=True)} is no torch device; try auto, cpu, cuda or cuda:1"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadOption(
            f"{option('device', name, quoted=True)}: torch sees {torch.cuda.device_count()} CUDA devices here; "
            f"{option('device', 'cpu')} works"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadOption(
            f"{option('device', name, quoted=True)}: there is no MPS device here; {option('device', 'cpu')} works"
        )
    if device.type not in ("cpu", "cuda", "mps"):  # torch knows many names: of hardware, and of what computes nothing
        try:
            torch.ones(1, device=device).item()
        except Exception as error:
            why = reason(error, 80)
            raise BadOption(
                f"{option('device', name, quoted=True)} cannot be used here ({why}); {option('device', 'cpu')} works"
            ) from error
    return device


def _device_of_one(name: str, world: World) -> str:
    """The device of one process of several, by name."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return "cpu"
    if name not in ("auto", "cuda"):
        raise BadOption(
            f"--device {name!r} cannot be that of all {world.size} processes; --device cuda gives each its own, "
            "--device cpu works without"
        )
    if world.launcher == "srun" and count == 1:  # SLURM has bound one device to each task
        return "cuda:0"
    if world.local_rank >= count:
        raise BadOption(
            f"--device {name!r}: process {world.local_rank + 1} of this machine has no CUDA device, torch sees "
            f"{count}; start {max(1, count)} a machine, or give --device cpu"
        )
    return f"cuda:{world.local_rank}"


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Seed python, numpy and torch; `deterministic` also asks torch for deterministic kernels only."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic  # cuDNN tries its algorithms and takes the fastest
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def versions() -> dict[str, str]:
    """The versions of the software that a run depends on, as plain strings."""
    import torch
    import torchvision

    return {
        "starfire": __version__,
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
    """The hardware of a run: device name and threads."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": str(device), "name": name, "threads": torch.get_num_threads()}
