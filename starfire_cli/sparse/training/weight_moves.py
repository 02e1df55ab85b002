"""Live weights from the dense tensor into the order of the loops, and their gradients back."""

from __future__ import annotations

from typing import Literal

from starfire_cli.sparse.emit import Code

FIELDS = (
    "source", "target",  # addresses: float32
    "where",  # address: int32, places in the dense tensor
    "count",  # of these
)  # fmt: skip
AT_ONCE = 4096  # floats a task


def moves(way: Literal["gather", "scatter"]) -> Code:
    """The loop: a task is `AT_ONCE` floats. `where` are places in `source` to gather, in `target` to scatter."""
    code = Code(FIELDS, 4)
    f = code.field
    source, target, where = (code.pointer(f[name]) for name in ("source", "target", "where"))
    last = code.min_i64(code.mul("%end", AT_ONCE), f["count"])
    with code.loop(code.mul("%begin", AT_ONCE), last) as i:
        place = code.offset_at(where, i)
        left, right = (place, i) if way == "gather" else (i, place)
        value = code.load("float", code.let(f"getelementptr float, ptr {source}, i64 {left}"))
        code.store("float", value, code.let(f"getelementptr float, ptr {target}, i64 {right}"))
    return code


def tasks(count: int) -> int:
    """The tasks of a loop over so many floats."""
    return -(-count // AT_ONCE)
