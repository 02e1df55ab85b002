"""Loops with their arguments, run by all threads of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from starfire_cli.sparse import compiler, machine
from starfire_cli.sparse.emit import Code
from starfire_cli.sparse.machine import CompiledLoops, Longs

SHARES = 8  # of a thread: what is taken at a time


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A loop whose arguments can be set.

    Args:
        code: the loop; compiled once.
        tasks: how many.
    """

    code: Code
    tasks: int


class Launch:
    """Loops that run one after the other.

    Args:
        loops: in order.
        threads: that will run them; for the size of what is taken at a time only.
    """

    def __init__(self, loops: Sequence[Loop]) -> None:
        self._fields = [list(loop.code.field) for loop in loops]
        self._args: list[Longs] = [np.zeros(len(fields), np.int64) for fields in self._fields]
        self._keeps: dict[str, Any] = {}
        grains = [max(1, loop.tasks // (SHARES * machine.threads())) for loop in loops]
        self._program = CompiledLoops(
            [
                (compiler.compiled(loop.code.text(), quickly=True), args.ctypes.data, loop.tasks, grain)
                for loop, args, grain in zip(loops, self._args, grains, strict=True)
            ]
        )

    def set(self, values: Mapping[str, Any], only: int | None = None) -> None:
        """Set arguments: numbers, or arrays and tensors for their addresses, which are kept alive.

        Args:
            values: by field.
            only: the loop that they are for; None for all that have such a field.
        """
        for i, (fields, args) in enumerate(zip(self._fields, self._args, strict=True)):
            if only is not None and i != only:
                continue
            for name, value in values.items():
                if name in fields:
                    args[fields.index(name)] = _number(value)
        self._keeps |= {f"{name} {only}": value for name, value in values.items() if not isinstance(value, int)}

    def run(self, **values: Any) -> None:
        """Run with these arguments set in every loop; nothing of them is kept."""
        for fields, args in zip(self._fields, self._args, strict=True):
            for name, value in values.items():
                args[fields.index(name)] = _number(value)
        self._program.run_one(0, 0, 0, machine.threads())


def _number(value: Any) -> int:
    if isinstance(value, int):
        return value
    return int(value.ctypes.data) if isinstance(value, np.ndarray) else int(value.data_ptr())
