"""The tables of a program in one piece of read-only data, each of them once."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from starfire_cli.sparse.loops import FIELDS
from starfire_cli.sparse.machine import Step

ALIGNED = 64  # bytes: a cache line, and the widest vector


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

    def data(self) -> bytes:
        """All of them."""
        return b"".join(self._parts)

    def assembly(self, name: str) -> str:
        """A module of LLVM's assembly with the data as a hidden constant."""
        data = self.data()
        return f'@{name} = hidden constant [{len(data)} x i8] c"{_escaped(data)}", align {ALIGNED}\n'


def _escaped(data: bytes) -> str:
    r"""Bytes as LLVM writes them in a string: those that are no plain letters as \XX."""
    plain = np.array([33 <= i < 127 and chr(i) not in '"\\' for i in range(256)])
    table = np.array([chr(i) if plain[i] else f"\\{i:02X}" for i in range(256)], dtype=object)
    parts = np.frombuffer(data, np.uint8)
    return "".join("".join(table[parts[i : i + (1 << 20)]]) for i in range(0, len(parts), 1 << 20))
