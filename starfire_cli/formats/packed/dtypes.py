"""Element types of packed files, by their safetensors names, and their bits as unsigned words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfire_cli.errors import StarfireError


@dataclass(frozen=True, kw_only=True)
class Dtype:
    """One element type.

    Args:
        name: as in a safetensors header.
        torch: the same for torch.
        bytes: of one word; a complex number is two words.
        words: words an element has.
        rotated: whether words are floats, whose sign bit moves to the bottom before they are coded.
    """

    name: str
    torch: torch.dtype
    bytes: int
    words: int = 1
    rotated: bool = False

    @property
    def bits(self) -> int:
        """Bits of one word."""
        return 8 * self.bytes

    @property
    def word(self) -> np.dtype[Any]:
        """The numpy type of one word."""
        return np.dtype(f"<u{self.bytes}")

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.bytes * self.words


def _float(name: str, kind: torch.dtype, size: int) -> Dtype:
    return Dtype(name=name, torch=kind, bytes=size, rotated=True)


_ALL = (
    _float("F64", torch.float64, 8),
    _float("F32", torch.float32, 4),
    _float("F16", torch.float16, 2),
    _float("BF16", torch.bfloat16, 2),
    _float("F8_E4M3", torch.float8_e4m3fn, 1),
    _float("F8_E5M2", torch.float8_e5m2, 1),
    Dtype(name="C64", torch=torch.complex64, bytes=4, words=2, rotated=True),
    Dtype(name="C128", torch=torch.complex128, bytes=8, words=2, rotated=True),
    Dtype(name="I64", torch=torch.int64, bytes=8),
    Dtype(name="U64", torch=torch.uint64, bytes=8),
    Dtype(name="I32", torch=torch.int32, bytes=4),
    Dtype(name="U32", torch=torch.uint32, bytes=4),
    Dtype(name="I16", torch=torch.int16, bytes=2),
    Dtype(name="U16", torch=torch.uint16, bytes=2),
    Dtype(name="I8", torch=torch.int8, bytes=1),
    Dtype(name="U8", torch=torch.uint8, bytes=1),
    Dtype(name="BOOL", torch=torch.bool, bytes=1),
)
BY_NAME = {dtype.name: dtype for dtype in _ALL}
_BY_TORCH = {dtype.torch: dtype for dtype in _ALL}
NOT_IN_SAFETENSORS = {"C128"}
_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # numpy knows these, and not all of torch's


def dtype_of(tensor: Tensor, key: str) -> Dtype:
    """The type of a tensor. Raises StarfireError for one that cannot be packed."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.dtype not in _BY_TORCH:
        kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
        raise StarfireError(f"{key} is a tensor of {kind}, which cannot be packed; known are {', '.join(BY_NAME)}")
    return _BY_TORCH[tensor.dtype]


def words_of(tensor: Tensor, dtype: Dtype) -> NDArray[Any]:
    """All of a tensor as flat words, in C order; shares memory where the tensor is contiguous."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if dtype.words == 2:
        flat = torch.view_as_real(flat).reshape(-1)
    return flat.view(_SIGNED[dtype.bytes]).numpy().view(dtype.word)


def tensor_of(words: NDArray[Any], dtype: Dtype, shape: tuple[int, ...]) -> Tensor:
    """Flat words as a tensor that shares their memory."""
    if words.size == 0:
        return torch.empty(shape, dtype=dtype.torch)  # torch gives nothing a stride of 0, and views no such thing
    signed = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[dtype.bytes]
    return torch.from_numpy(words.view(signed)).view(dtype.torch).reshape(shape)
