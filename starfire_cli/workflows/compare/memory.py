"""Memory that a process has taken and that the machine has left, and the cores there are."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path

_CONTEXT = 600_000_000  # bytes that CUDA takes for a process beside its tensors
_GROUP = Path("/sys/fs/cgroup")


def peak_memory() -> int | None:
    """The most bytes that this process, and its workers that are running, have had in memory; None if not known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return own + sum(map(_peak_of, _children()))


def available_memory() -> int | None:
    """Bytes that processes can still take without swapping, within the container's limit; None if not known."""
    found = [_meminfo(), _left_in_container()]
    known = [count for count in found if count is not None]
    return min(known) if known else None


def gpu_memory() -> tuple[int, int] | None:
    """(bytes that this process has taken of its GPU at most, bytes that are free there); None without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    free, _ = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_reserved() + _CONTEXT, free


def cores() -> int:
    """Processors that this process may use, at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_GROUP / "cpu.max").read_text().split()
        if quota != "max":
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def _meminfo() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_container() -> int | None:
    """The bytes that a container's memory limit leaves; files that can be dropped do not count as taken."""
    for limit, taken, stat, dropped in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # also for "max"
            most = int((_GROUP / limit).read_text())
            used = int((_GROUP / taken).read_text())
            lines = (line.split() for line in (_GROUP / stat).read_text().splitlines())
            used -= next((int(words[1]) for words in lines if words[0] == dropped), 0)
            return max(0, most - used)
    return None


def _children() -> list[int]:
    with contextlib.suppress(OSError, ValueError):
        own = Path(f"/proc/{os.getpid()}/task")
        return [int(pid) for task in own.iterdir() for pid in (task / "children").read_text().split()]
    return []


def _peak_of(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
