"""Checks the calls in a torch pickle before they are made: claimed sizes against storages, copies against the file.

Only what `torch.load(weights_only=True)` can call is known here (a test holds the two lists together). Nothing is made:
a tensor is the number of bytes it would claim, a storage the number of values the file has for it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from starfire_cli.damage import Damaged
from starfire_cli.formats.checkpoint.inert import Called, is_data
from starfire_cli.text import shape_text

SMALL = 1 << 24  # bytes; below this nothing a file claims can hurt
MOST_AXES = 32
_OBJECT = 100  # bytes that any small object takes, about
_TENSOR = 1000  # and a tensor, beside its data
_ITEM_BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_STORAGE = re.compile(r"torch\.(?:cuda\.)?(\w+)Storage")
_TENSOR_CLASS = re.compile(r"torch\.(?:cuda\.)?(?:sparse\.)?\w*Tensor")
_UNTYPED = "torch.storage.UntypedStorage"
_WRAPPED = "torch.storage.TypedStorage"
_REBUILD = "torch._utils._rebuild_"
_EMPTY = {"builtins.bytearray", "builtins.set", "builtins.complex", "collections.OrderedDict", "collections.Counter"}
_VALUES = {f"torch.per_{what}" for what in ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric")}
_VALUES |= {"torch.per_channel_affine_float_qparams"}
_CALLED = {
    *_EMPTY,
    *(f"{_REBUILD}{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "qtensor", "sparse_tensor")),
    *(f"{_REBUILD}{what}" for what in ("parameter", "parameter_with_state", "meta_tensor_no_storage")),
    *(f"{_REBUILD}{what}" for what in ("nested_tensor", "wrapper_subclass")),
    *(f"{_REBUILD}{what}" for what in ("device_tensor_from_numpy", "device_tensor_from_cpu_tensor")),
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch.Size",
    "torch.device",
    "_codecs.encode",
}


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """A class, function or constant, by its dotted name."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A storage in the file: `count` values of `item` bytes."""

    item: int
    count: int


@dataclass(slots=True, eq=False)
class Made:
    """The result of a call; `bytes` is the size that a tensor claims."""

    tensor: bool = False
    bytes: int = 0
    items: int = 0


def is_known(name: str) -> bool:
    """Whether torch's own loading knows `name`; what it does not know is replaced by an inert stand-in."""
    if name in _CALLED or name in _VALUES or name in (_UNTYPED, _WRAPPED) or _TENSOR_CLASS.fullmatch(name):
        return True
    return item_bytes(name) is not None or dtype_bytes(name) is not None


def item_bytes(name: str) -> int | None:
    """Bytes of one value in a storage of the class `name`; None where it is no storage class."""
    if name == _UNTYPED:
        return 1
    found = _STORAGE.fullmatch(name)
    return _ITEM_BYTES.get(found[1]) if found else None


def dtype_bytes(name: str) -> int | None:
    """Bytes of one value of the type `name`; None where it is no type."""
    return _dtypes().get(name)


@cache
def _dtypes() -> dict[str, int]:
    return {str(kind): kind.itemsize for kind in vars(torch).values() if isinstance(kind, torch.dtype)}


class Budget:
    """The memory that the file's size accounts for, in bytes.

    Args:
        size: of the file. Each byte of it may make a few dozen in objects, and tensors may be views that share it.
    """

    def __init__(self, size: int) -> None:
        self._objects = 32 * size + 4 * SMALL
        self._claims = 100 * size + SMALL

    def spend(self, objects: int = 0, claims: int = 0) -> None:
        """Takes bytes from the budget. Raises Damaged once it is used up."""
        self._objects -= objects
        self._claims -= claims
        if self._objects < 0 or self._claims < 0:
            raise Damaged("what it asks for takes far more than the file holds")


def call(function: Any, args: Any, budget: Budget, *, new: bool) -> Any:
    """The result of `function(*args)`, or with `new` of creating an object of that class, without making it.

    Raises Damaged where it takes more than the file accounts for, Called where it is no call that only makes data.
    """
    if not isinstance(function, Name) or not isinstance(args, tuple):
        raise Damaged("it calls what is no function")
    name = function.text
    budget.spend(_OBJECT)
    if not is_known(name):
        if not new and not is_data(name):
            raise Called(name)
        if args and name.partition(".")[0] == "torch":
            raise Called(name)  # a later torch may know it
        return Made()
    if name not in _CALLED:
        if args or not _TENSOR_CLASS.fullmatch(name):
            raise Damaged(f"{name} is called, which would be a tensor without data")
        return Made(tensor=True)
    if name.startswith(f"{_REBUILD}tensor") or name == f"{_REBUILD}qtensor":
        storage, offset, size, stride = args[:4]
        item = dtype_bytes(_named(args[6])) if name.endswith("_v3") else None
        made = tensor(storage, offset, size, stride, budget, item)
        budget.spend(made.bytes if name.endswith("qtensor") else 0)  # made before it gets its storage
        return made
    if name in (f"{_REBUILD}nested_tensor", f"{_REBUILD}wrapper_subclass"):
        raise Damaged(f"a tensor made by {name}, whose data cannot be checked")
    if name in (f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state", "torch.nn.parameter.Parameter"):
        return _tensor_of(args[0]) if args else Made(tensor=True)
    if name == f"{_REBUILD}device_tensor_from_cpu_tensor":
        budget.spend(16 * _tensor_of(args[0]).bytes)  # the widest type for the narrowest
        return args[0]
    if name == f"{_REBUILD}sparse_tensor":
        budget.spend(_TENSOR + sum(part.bytes for part in args[1] if isinstance(part, Made)))  # read to be checked
        return Made(tensor=True)
    if name == f"{_REBUILD}meta_tensor_no_storage":
        return Made(tensor=True)
    if name == "torch._tensor._rebuild_from_type_v2":
        return call(args[0], args[2], budget, new=False)
    return _plain(name, args, budget)


def tensor(storage: Any, offset: Any, size: Any, stride: Any, budget: Budget, item: int | None = None) -> Made:
    """A tensor over a storage. Raises Damaged where it reaches beyond it, or claims far more."""
    if not isinstance(storage, Storage):
        raise Damaged("a tensor without a storage")
    size, stride = _numbers(size), _numbers(stride)
    (offset,) = _numbers((offset,))
    if len(size) != len(stride) or len(size) > MOST_AXES:
        raise Damaged(f"a tensor of {len(size)} axes and {len(stride)} strides")
    item = item or storage.item
    held = storage.item * storage.count
    end = offset + (1 + sum((s - 1) * step for s, step in zip(size, stride, strict=True)) if all(size) else 0)
    if end * item > held:
        raise Damaged(f"a tensor of shape {shape_text(size)} needs {end * item} bytes, the file has {held} for it")
    most = item * math.prod(s for s in size if s)  # an axis of 0 must not hide what the others say
    if most > max(held, SMALL):
        raise Damaged(f"a tensor of shape {shape_text(size)} claims far more than the file holds")
    claimed = most if all(size) else 0
    budget.spend(_TENSOR, claimed)
    return Made(tensor=True, bytes=claimed)


def check_key(key: Any) -> None:
    """Raises Damaged for keys that are costly to hash: a huge number, or deeply nested tuples."""
    left, waiting = 100, [key]
    while waiting:
        part = waiting.pop()
        left -= 1
        if left < 0 or (type(part) is int and part.bit_length() > 63):
            raise Damaged("a key is no name")
        if isinstance(part, tuple):
            waiting += part[:100]


def _plain(name: str, args: tuple[Any, ...], budget: Budget) -> Any:
    """Sets, dictionaries, bytes and sizes: as large as their arguments."""
    if not args:
        budget.spend(2 * _OBJECT)
        return Made()
    first = args[0]
    if name == "torch.Size":
        return _numbers(first)
    if name == "builtins.complex" or name == "torch.device" or name == "torch.serialization._get_layout":
        if not all(isinstance(arg, int | float | str) and len(str(arg)[:100]) < 100 for arg in args):
            raise Damaged(f"{name} of what is no number or name")
        return Made()
    if isinstance(first, str | bytes) and name != "builtins.set":
        budget.spend(4 * len(first) + 2 * _OBJECT)
    elif isinstance(first, list | tuple):
        for part in first:
            check_key(part)
        budget.spend(2 * _OBJECT * (1 + len(first)))
    elif isinstance(first, Made) and not first.tensor:
        budget.spend(2 * _OBJECT * (1 + first.items))
        return Made(items=first.items)
    else:
        raise Damaged(f"{name} of {type(first).__name__}")
    return Made(items=len(first))


def _tensor_of(value: Any) -> Made:
    if not isinstance(value, Made) or not value.tensor:
        raise Damaged("a parameter without a tensor")
    return value


def _named(value: Any) -> str:
    return value.text if isinstance(value, Name) else ""


def _numbers(values: Any) -> tuple[int, ...]:
    """A shape, strides, an offset: whole numbers from 0 that fit in 63 bits."""
    if not isinstance(values, tuple | list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in values):
        raise Damaged("a shape, stride or offset is no whole number")
    return tuple(values)
