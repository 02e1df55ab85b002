"""The tables of a program in one piece of read-only data, each of them once."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from starfire_cli.sparse.loops import FIELDS
from starfire_cli.sparse.machine import Step

ALIGNED = 64  # bytes: a cache line, and the widest vector
_MARK = hashlib.sha256(b"the tables of starfire export").digest()  # is in no object file by chance


class Tables:
    """Tables, one behind the other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._found: dict[bytes, int] = {}
        self.size = 0

    def add(self, array: Any) -> int:
        """Add an array where it is not there yet; returns the byte at which it begins."""
        data = np.ascontiguousarray(array).tobytes()
        key = hashlib.sha256(data).digest()
        if key not in self._found:
            self._found[key] = self.size
            self._parts += [data, bytes(-len(data) % ALIGNED)]
            self.size += len(data) + -len(data) % ALIGNED
        return self._found[key]

    def arguments(self, step: Step) -> int:
        """Add a step's tables and its arguments, in which tables are told by where they begin here."""
        found = np.zeros(len(FIELDS), np.int64)
        for name, value in step.values.items():
            found[FIELDS.index(name)] = self.add(value) if isinstance(value, np.ndarray) else value
        return self.add(found)

    def placeholder(self, name: str) -> str:
        """A module of LLVM's assembly with a hidden constant that `filled` replaces by the tables.

        As text the tables themselves would take three times their size, and LLVM some more.
        """
        mark = "".join(f"\\{byte:02X}" for byte in _MARK)
        kind = f"<{{ [{len(_MARK)} x i8], [{self._room - len(_MARK)} x i8] }}>"
        value = f'<{{ [{len(_MARK)} x i8] c"{mark}", [{self._room - len(_MARK)} x i8] zeroinitializer }}>'
        return f"@{name} = hidden constant {kind} {value}, align {ALIGNED}\n"

    def filled(self, code: bytes) -> bytes:
        """An object file with the tables where the placeholder was."""
        at = code.find(_MARK)
        assert at >= 0 and code.find(_MARK, at + 1) < 0, "the placeholder is there once"
        parts = [*self._parts, bytes(self._room - self.size)]
        return b"".join([code[:at], *parts, code[at + self._room :]])

    @property
    def _room(self) -> int:
        return max(self.size, ALIGNED)
