"""Checks a torch pickle before it is loaded, without making any of its objects.

`torch.load(weights_only=True)` runs no code, but it makes what it is told to make: a few bytes may ask for gigabytes,
and a tensor for storage that the file does not have. So each pickle is gone through once beforehand, opcode by opcode,
with numbers in place of tensors.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from starfire_cli.damage import Damaged
from starfire_cli.formats.checkpoint.pickle_calls import (
    Budget,
    Made,
    Name,
    Storage,
    call,
    check_key,
    is_known,
    item_bytes,
    tensor,
)

_VALUES = {"BINUNICODE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "SHORT_BINSTRING"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class NoCheckpoint(Exception):
    """Raised for a pickle that torch never wrote; its text says why."""


class Checker:
    """Checks the pickles of one file.

    Args:
        size: of the file, which all it asks for is held against.
        records: bytes that the file has for each storage; None where it says so itself, behind the pickles.
    """

    def __init__(self, size: int, records: Mapping[str, int] | None) -> None:
        self.foreign: set[str] = set()
        self.storages: dict[str, Storage] = {}
        self._left = size
        self._records = records
        self._views: dict[Any, tuple[str, int, int]] = {}
        self._budget = Budget(size)

    def run(self, file: IO[bytes] | mmap.mmap) -> Any:
        """Checks one pickle; returns its object, with stand-ins for tensors and results of calls.

        Raises Damaged, Called for a function that is not data, NoCheckpoint for an opcode torch does not write.
        """
        stack: list[Any] = []
        below: list[list[Any]] = []
        memo: dict[int, Any] = {}
        arg: Any
        for opcode, arg, _ in pickletools.genops(file):  # type: ignore[arg-type]  # it needs no more than a map has
            name = opcode.name
            if name in ("BINPUT", "LONG_BINPUT"):
                memo[arg] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[arg])
            elif name in _VALUES:
                stack.append(arg)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "MARK":
                below.append(stack)
                stack = []
                self._budget.spend(50)
            elif name == "TUPLE":
                stack, items = below.pop(), stack
                stack.append(tuple(items))
                self._budget.spend(50)
            elif name in _TUPLES:
                count = _TUPLES[name]
                if len(stack) < count:
                    raise Damaged("its pickle takes what is not there")
                stack[-count:] = [tuple(stack[-count:])]
                self._budget.spend(50)
            elif name == "GLOBAL":
                stack.append(self._named(arg))
            elif name in ("REDUCE", "NEWOBJ"):
                args, function = stack.pop(), stack.pop()
                stack.append(call(function, args, self._budget, new=name == "NEWOBJ"))
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name == "EMPTY_LIST":
                stack.append([])
                self._budget.spend(50)
            elif name in ("EMPTY_DICT", "EMPTY_SET"):
                stack.append(Made())
                self._budget.spend(64 if name == "EMPTY_DICT" else 216)
            elif name == "APPEND":
                item = stack.pop()
                _list(stack).append(item)
            elif name == "APPENDS":
                stack, items = below.pop(), stack
                _list(stack).extend(items)
            elif name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._fill(stack, [key, value])
            elif name == "SETITEMS":
                stack, items = below.pop(), stack
                self._fill(stack, items)
            elif name == "BUILD":
                self._build(stack.pop(), stack[-1])
            elif name == "STOP":
                return stack.pop()
            elif name != "PROTO":
                raise NoCheckpoint(f"Unsupported operand {name}")
        raise Damaged("its pickle has no end")

    def _named(self, arg: str) -> Name:
        module, _, name = arg.partition(" ")
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        module = IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        if not is_known(full):
            self.foreign.add(full)
        return Name(full)

    def _storage(self, pid: Any) -> Storage:
        """The storage of a persistent id: ("storage", class, key, device, count) and in old files a view of it."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], Name):
            raise Damaged("it refers to what is no storage")
        _, kind, key, _, count, *view = pid
        item = item_bytes(kind.text)
        if item is None or not isinstance(key, str) or type(count) is not int or not 0 <= count < 1 << 60:
            raise Damaged("a storage has no type, name or size")
        storage = Storage(item, count)
        known = self.storages.setdefault(key, storage)
        if (known.item, known.count) != (item, count):
            raise Damaged(f"storage {key} has two types or sizes")
        if known is storage:
            held = self._left if self._records is None else self._records.get(key, 0)
            if item * count > held or (self._records is not None and item * count <= held - item):
                raise Damaged(f"storage {key} should have {item * count} bytes, the file has {held}")
            self._left -= item * count
        return self._view(key, known, view[0]) if view and view[0] is not None else known

    def _view(self, key: str, root: Storage, view: Any) -> Storage:
        name, start, count = view
        if type(start) is not int or type(count) is not int or not 0 <= start <= start + count <= root.count:
            raise Damaged(f"a part of storage {key} reaches beyond it")
        check_key(name)
        if self._views.setdefault(name, (key, start, count)) != (key, start, count) or name in self.storages:
            raise Damaged(f"a part of storage {key} has two meanings")
        return Storage(root.item, count)

    def _fill(self, stack: list[Any], items: list[Any]) -> None:
        target = stack[-1]
        if not isinstance(target, Made) or target.tensor or len(items) % 2:
            raise Damaged("it fills what is no dictionary")
        for key in items[::2]:
            check_key(key)
        target.items += len(items) // 2
        self._budget.spend(50 * len(items))

    def _build(self, state: Any, target: Any) -> None:
        """Sets an object's state; for a tensor in files from before 2017, a storage and a shape."""
        if isinstance(target, Made) and target.tensor:
            storage, offset, size, stride = state[:4]
            tensor(storage, offset, size, stride, self._budget)


def _list(stack: list[Any]) -> list[Any]:
    if not isinstance(stack[-1], list):
        raise Damaged("it appends to what is no list")
    return stack[-1]


def check_legacy(path: Path) -> set[str]:
    """Checks a file of before torch 1.6: five pickles, then each storage with its length. Returns its foreign names.

    Raises as `Checker.run`.
    """
    size = path.stat().st_size
    checker = Checker(size, None)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(4):  # a mark, a version, facts about the machine, the content
            checker.run(data)
        keys = checker.run(data)
        if not isinstance(keys, list) or len(keys) != len(checker.storages) or set(keys) != set(checker.storages):
            raise Damaged("its list of storages is not that of its tensors")
        at = data.tell()
        for key in keys:
            storage = checker.storages[key]
            count = int.from_bytes(data[at : at + 8], "little")
            at += 8 + storage.item * storage.count
            if count != storage.count or at > size:
                raise Damaged(f"storage {key} should have {storage.count} values and is cut short or of another size")
    return checker.foreign
