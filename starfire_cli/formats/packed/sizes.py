"""Sizes of a packed file, in total and by layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TensorSize:
    """The size of one tensor in the file.

    Args:
        key: in the state dict.
        shape: of the tensor.
        encoding: of its mask; "plain" where it lies in the file as it is.
        weights: how many elements it has.
        live: how many of them are written.
        masked: whether the checkpoint has a mask for it.
        dense_bytes: in memory.
        packed_bytes: in the file, without its line in the header.
        bound_bytes: mask information + entropy of the exponents + all other bits; or of the numbers in a codebook.
        codebook: how many different values there are, where they are written as numbers of a codebook.
    """

    key: str
    shape: tuple[int, ...]
    encoding: str
    weights: int
    live: int
    masked: bool
    dense_bytes: int
    packed_bytes: int
    bound_bytes: float
    codebook: int | None = None

    @classmethod
    def plain(cls, key: str, tensor: Tensor, bound_bytes: float) -> TensorSize:
        """The size of a tensor that is stored as it is."""
        return cls(
            key=key,
            shape=tuple(tensor.shape),
            encoding="plain",
            weights=tensor.numel(),
            live=tensor.numel(),
            masked=False,
            dense_bytes=tensor.nbytes,
            packed_bytes=tensor.nbytes,
            bound_bytes=bound_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A file that was written: its size, its header's, and its tensors' one by one."""

    packed_bytes: int
    header_bytes: int
    tensors: tuple[TensorSize, ...]

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors in memory."""
        return sum(t.dense_bytes for t in self.tensors)

    @property
    def bound_bytes(self) -> float:
        """The lower bound in bytes for all tensors."""
        return sum(t.bound_bytes for t in self.tensors)
