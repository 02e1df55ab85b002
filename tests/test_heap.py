"""The C library's heap is told only where it is glibc's, and only where the user has told it nothing."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from starfire_cli import heap


class Library:
    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def mallopt(self, *args: int) -> int:
        self.calls.append(("mallopt", args))
        return 1

    def malloc_trim(self, *args: int) -> int:
        self.calls.append(("malloc_trim", args))
        return 1

    def gnu_get_libc_version(self) -> None: ...


def test_the_users_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(heap, "_glibc", lambda: library)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    heap.keep_heap()
    assert not library.calls
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    heap.keep_heap()
    assert library.calls == [("mallopt", (-3, 32 << 20)), ("mallopt", (-1, 2**31 - 1))]


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_libraries_are_left_alone(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str | None) -> Any:
        raise error("no such library")

    monkeypatch.setattr(ctypes, "CDLL", none)
    heap.keep_heap()
    heap.trim_heap()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_kept_and_trimmed() -> None:
    code = """
import ctypes, sys
from starfire_cli import heap
if heap._glibc() is None:
    sys.exit("no glibc")
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
if "keep" in sys.argv:
    heap.keep_heap()
before = resident()
blocks = [b"x" * (1 << 20) for _ in range(50)]
del blocks
held = resident() - before
heap.trim_heap()
print(held >> 20, (resident() - before) >> 20)
"""
    found = {}
    for args in (["keep"], []):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
        if "no glibc" in done.stderr:
            pytest.skip("another C library")
        found["".join(args)] = tuple(map(int, done.stdout.split()))
    assert found["keep"][0] > 40 > 20 > found["keep"][1]
    assert found[""][0] < 20
