"""The C library's heap: what it keeps, and what it gives back to the system. Only glibc's is touched."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_NEVER = 2**31 - 1
_LARGEST = 32 << 20  # bytes: what glibc's own, moving threshold ends at


def keep_heap() -> None:
    """Keep freed memory for the next step of a training on the CPU.

    Every step asks for the same memory again; given back to the system in between, each page is cleared anew. Blocks
    above 32 MiB still go back. What the user has set by `MALLOC_..._` stays.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    if (library := _glibc()) is not None:
        library.mallopt(_MAP, _LARGEST)
        library.mallopt(_TRIM, _NEVER)


def trim_heap() -> None:
    """Give what is free back to the system."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library; None where it is not glibc."""
    try:
        library = ctypes.CDLL(None)
        _ = library.malloc_trim, library.mallopt, library.gnu_get_libc_version
    except (AttributeError, OSError, TypeError):  # Windows has no library of no name
        return None
    return library
