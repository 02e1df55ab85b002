"""Contenders of the packing benchmark: starfire's file formats, and others in common use."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from starfire_cli.formats.checkpoint.interchange import write_bitmask
from starfire_cli.formats.packed import read as packed
from starfire_cli.formats.packed.rounding import round_state, share_state
from starfire_cli.formats.packed.write import pack
from starfire_cli.pruning.codebook import parse

State = dict[str, Tensor]
Way = tuple[str, Callable[[Path], object], Callable[[Path], object]]


def ways(state: State, masks: State, *, thorough: bool) -> Iterator[Way]:
    """(name, write, read) of starfire and its peers."""
    for effort in ("fast", "normal", "best"):
        yield (
            f"starfire ({effort})",
            lambda path, effort=effort: pack(path, state=state, masks=masks, meta={}, effort=effort),
            packed.load_state,
        )
    for values in ("bf16", "fp16"):
        rounded, stored, _ = round_state(state, masks, values)
        yield (
            f"starfire ({values}, lossy)",
            lambda path, r=rounded, s=stored: pack(path, state=r, masks=masks, meta={}, stored=s),
            packed.load_state,
        )
    for spec in ("codebook:bits=5", "codebook:bits=5,noise=0", "codebook:bits=5,rate=2"):
        shared, _ = share_state(state, masks, parse("--values", spec))
        yield (
            f"starfire ({spec}, lossy)",
            lambda path, s=shared: pack(path, state=s, masks=masks, meta={}, codebooks=True),
            packed.load_state,
        )
    yield "npz", lambda path: save_npz(path, state), lambda path: dict(np.load(path.with_suffix(".npz")))
    for level in (3, 19) if thorough else (3,):
        yield f"safetensors + zstd -{level}", lambda path, n=level: save_zstd(path, state, n), load_zstd
    yield "bitmask, 2-d", lambda path: write_bitmask(path, *flat(state, masks)), load_bitmask
    yield "bitmask, 4-d", lambda path: write_bitmask(path, state, masks), load_bitmask
    yield "torch CSR", lambda path: torch.save(csr(state, masks), path), load_sparse
    yield "torch COO", lambda path: torch.save(coo(state, masks), path), load_sparse
    yield "bitmask + byte shuffle + zstd -3", lambda path: save_shuffled(path, state, masks), load_shuffled
    if importlib.util.find_spec("blosc2"):
        import blosc2

        yield (
            "blosc2 (bitshuffle, zstd)",
            lambda path: save_blosc(path, state, blosc2),
            lambda path: load_blosc(path, blosc2),
        )


def save_npz(path: Path, state: State) -> None:
    np.savez_compressed(path, **{key: tensor.numpy() for key, tensor in state.items()})  # type: ignore[arg-type]
    path.with_suffix(".npz").replace(path)
    path.with_suffix(".npz").symlink_to(path)


def save_zstd(path: Path, state: State, level: int) -> None:
    path.write_bytes(zstandard.ZstdCompressor(level=level).compress(safetensors.torch.save(state)))


def load_zstd(path: Path) -> State:
    return safetensors.torch.load(zstandard.ZstdDecompressor().decompress(path.read_bytes()))


def flat(state: State, masks: State) -> tuple[State, State]:
    """Kernels as rows of a matrix: without this, bits fill only 3 of every 8."""
    return (
        {k: v.flatten(1) if k in masks else v for k, v in state.items()},
        {k: m.flatten(1) for k, m in masks.items()},
    )


def load_bitmask(path: Path) -> State:
    """As compressed-tensors unpacks it."""
    file, state = safetensors.torch.load_file(path), {}
    for name, tensor in file.items():
        key, _, part = name.rpartition(".")
        if part == "compressed":
            shape = tuple(file[f"{key}.shape"].tolist())
            bits = np.unpackbits(file[f"{key}.bitmask"].numpy(), axis=-1, count=shape[-1], bitorder="little")
            state[key] = torch.zeros(shape, dtype=tensor.dtype)
            state[key][torch.from_numpy(bits.reshape(shape).astype(bool))] = tensor
        elif part not in ("shape", "bitmask", "row_offsets"):
            state[name] = tensor
    return state


def csr(state: State, masks: State) -> dict[str, Any]:
    """crow, col (int32) and values of each matrix; kernels as rows."""
    result: dict[str, Any] = {}
    for key, tensor in state.items():
        if key in masks:
            m = tensor.flatten(1).to_sparse_csr()
            result[key] = [tensor.shape, m.crow_indices().int(), m.col_indices().int(), m.values()]
        else:
            result[key] = tensor
    return result


def coo(state: State, masks: State) -> dict[str, Any]:
    """torch's own sparse tensors, indices of 64 bits an axis."""
    return {key: tensor.to_sparse() if key in masks else tensor for key, tensor in state.items()}


def load_sparse(path: Path) -> State:
    state = {}
    for key, value in torch.load(path, weights_only=True).items():
        if isinstance(value, list):
            shape, *parts = value
            state[key] = (
                torch.sparse_csr_tensor(*parts, size=(shape[0], math.prod(shape[1:]))).to_dense().reshape(shape)
            )
        else:
            state[key] = value.to_dense() if value.is_sparse else value
    return state


def save_shuffled(path: Path, state: State, masks: State) -> None:
    """What a good engineer writes in an hour: one bit a weight, live values in planes of bytes, zstd over each part."""
    squeeze = lambda data: boxed(zstandard.ZstdCompressor(level=3).compress(data))  # noqa: E731
    parts: dict[str, Any] = {}
    for key, tensor in state.items():
        if key in masks:
            mask = masks[key].numpy()
            planes = np.ascontiguousarray(tensor.numpy()[mask].view(np.uint8).reshape(-1, tensor.element_size()).T)
            bits = np.packbits(mask.reshape(-1), bitorder="little")
            parts[key] = [tuple(tensor.shape), squeeze(bits.tobytes()), *(squeeze(p.tobytes()) for p in planes)]
        else:
            parts[key] = tensor
    torch.save(parts, path)


def load_shuffled(path: Path) -> State:
    expand = lambda part: zstandard.ZstdDecompressor().decompress(part.numpy().data)  # noqa: E731
    state = {}
    for key, part in torch.load(path, weights_only=True).items():
        if isinstance(part, Tensor):
            state[key] = part
            continue
        shape, bits, *planes = part
        mask = np.unpackbits(np.frombuffer(expand(bits), np.uint8), count=math.prod(shape), bitorder="little").view(
            bool
        )
        live = np.stack([np.frombuffer(expand(plane), np.uint8) for plane in planes], axis=1)
        dense = np.zeros(mask.size, np.float32)
        dense[mask] = live.reshape(-1).view(np.float32)
        state[key] = torch.from_numpy(dense).reshape(shape)
    return state


def save_blosc(path: Path, state: State, blosc2: Any) -> None:
    options = {"clevel": 5, "codec": blosc2.Codec.ZSTD, "filters": [blosc2.Filter.BITSHUFFLE]}
    parts = {
        key: boxed(blosc2.compress2(t.numpy().tobytes(), typesize=t.element_size(), **options))
        for key, t in state.items()
    }
    torch.save(parts, path)


def load_blosc(path: Path, blosc2: Any) -> dict[str, Any]:
    parts = torch.load(path, weights_only=True)
    return {key: np.frombuffer(blosc2.decompress2(part.numpy().tobytes()), np.uint8) for key, part in parts.items()}


def boxed(data: bytes) -> Tensor:
    """Bytes as torch.save takes them: pickled as bytes they would grow by half."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
