"""Checks that metadata are plain values, within the depth and size of anything that is written."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from starfire_cli.damage import Damaged

_DEEPEST = 50
_MOST = 1_000_000  # values, those in several places counted in each


def check_plain(value: Any, where: str, *, tensors: bool = False) -> None:
    """Raises Damaged unless `value` is nested text, numbers, lists and dictionaries (and tensors, if allowed).

    What passes can be walked, printed and written as JSON by whoever gets it: parts that are shared cannot make a small
    file endless, nor deep ones end the interpreter's stack.
    """
    level: list[Any] = [value]
    left = _MOST
    for _ in range(_DEEPEST):
        below: list[Any] = []
        left -= len(level)
        for part in level:
            if isinstance(part, dict):
                if not all(type(key) is str or _is_number(key) for key in part):
                    raise Damaged(f"its {where}: a name is no text")
                below += part.values()
            elif type(part) is list or type(part) is tuple:
                below += part
            elif not (part is None or type(part) is str or _is_number(part) or (tensors and isinstance(part, Tensor))):
                raise Damaged(f"its {where}: a {type(part).__name__} is no plain value")
            if len(below) > left:
                raise Damaged(f"its {where}: more than {_MOST} values")
        if not below:
            return
        level = below
    raise Damaged(f"its {where}: nested too deeply")


def _is_number(value: Any) -> bool:
    return type(value) is bool or type(value) is float or (type(value) is int and value.bit_length() <= 64)
