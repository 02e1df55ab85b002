"""Packed files: writing, with each layer in its shortest encoding, and verified before the file gets its name."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.formats.atomic import atomic_write
from starfire_cli.formats.packed import codebook, encoding, live_values
from starfire_cli.formats.packed.container import VERSION, WITH_CODEBOOKS, Entry, write
from starfire_cli.formats.packed.dtypes import NOT_IN_SAFETENSORS, Dtype, dtype_of, words_of
from starfire_cli.formats.packed.estimate import FOR_READERS, zeros_apart
from starfire_cli.formats.packed.read import FREE_BYTES, MOST_PER_BYTE, SUFFIX, PackedFile, in_threads
from starfire_cli.formats.packed.sizes import Packed, TensorSize
from starfire_cli.formats.packed.streams import Bits, StreamWriter
from starfire_cli.pruning.masks import digest
from starfire_cli.pruning.ties import distinct, masks_once, ties_of

_WORTH_IT = 1 / 16  # of all layers' bytes


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A tensor, what became of it, and whether it may just as well lie in the file as it is.

    `shorter` is the same with a codebook, where that takes fewer bytes.
    """

    size: TensorSize
    dtype: Dtype
    stored: Dtype
    data: bytes
    may_be_plain: bool
    shorter: _Layer | None = None


def pack(
    path: Path,
    *,
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None,
    meta: Mapping[str, Any],
    stored: Mapping[str, Dtype] | None = None,
    codebooks: bool = False,
    effort: str = "normal",
    keep_plain: bool = False,
    verify: bool = True,
) -> Packed:
    """Writes a packed file atomically; equal input gives equal bytes.

    Args:
        path: the file.
        state: weights; what a mask calls dead must be +0.0.
        masks: True where a weight is alive; one for all names of a tensor.
        meta: the checkpoint's, plain values.
        stored: types to write the values of some tensors as; they must hold them exactly.
        codebooks: write a layer's values as numbers of a codebook wherever that is shorter. Otherwise it is done only
            where it makes the file a good deal smaller, since older versions of starfire cannot read it.
        effort: "fast", "normal" or "best".
        keep_plain: leave every tensor that was never pruned as it is, whatever that costs.
        verify: read the file back and compare every bit before it gets its name.

    Raises:
        Mismatch: a dead weight is not +0.0, or two names of one tensor have different masks.
        StarfireError: a tensor cannot be packed, the disk is full, or the file did not read back.
    """
    ties = ties_of(state)
    masks, stored = masks_once(masks or {}, ties, distinct(state)), stored or {}
    if "__metadata__" in state:
        raise StarfireError("a tensor called __metadata__ cannot be in a safetensors file")
    for key, mask in masks.items():
        if key not in state or mask.shape != state[key].shape:
            raise Mismatch(f"the mask of {key} has no weight of its shape {tuple(mask.shape)}")
    once = [key for key in state if key not in ties]
    layers = in_threads(lambda key: _encode(key, state[key], masks.get(key), stored.get(key), effort), once)
    layers = _with_codebooks(layers, asked=codebooks)
    plain = _plain_keys(layers, keep_plain)
    entries: list[Entry] = []
    sizes: list[TensorSize] = []
    table: dict[str, dict[str, Any]] = {}
    checksums = ""
    for layer in layers:
        size, key = layer.size, layer.size.key
        if key in plain:
            data = words_of(state[key], layer.dtype).data
            entries.append(Entry(name=key, dtype=layer.dtype.name, shape=size.shape, data=data))
            checksums += f"{zlib.crc32(data):08x}"
            sizes.append(TensorSize.plain(key, state[key], size.bound_bytes))
        else:
            entries.append(Entry(name=key + SUFFIX, dtype="U8", shape=(len(layer.data),), data=layer.data))
            table[key] = _table_row(layer)
            sizes.append(size)
    metadata = {
        "layers": _json(table),
        "plain_crc32": checksums,
        "masks_digest": digest(masks),
        "dense_bytes": str(sum(s.dense_bytes for s in sizes)),
        "meta": _json(dict(meta)),
    }
    if ties:
        metadata["ties"] = _json({key: {"is": ties[key], "at": at} for at, key in enumerate(state) if key in ties})
    content = sum(s.packed_bytes for s in sizes)
    with atomic_write(path, need=content) as file:
        version = WITH_CODEBOOKS if any("codebook" in row for row in table.values()) else VERSION
        total = write(file, entries, metadata, version)
        if verify:
            file.flush()
            _verify(Path(file.name), path, state, masks)
    return Packed(packed_bytes=total, header_bytes=total - content, tensors=tuple(sizes))


def _encode(key: str, tensor: Tensor, mask: Tensor | None, stored: Dtype | None, effort: str) -> _Layer:
    dtype = dtype_of(tensor, key)
    rounded = stored is not None
    stored = stored or dtype
    words = words_of(tensor.to(stored.torch) if rounded else tensor, stored)
    alive = zeros_apart(words, stored) if mask is None else _mask(key, mask, words, stored)
    live = words if alive.all() else words[alive if stored.words == 1 else alive.repeat(stored.words)]
    shape = tuple(tensor.shape)
    unnamed = key.endswith(SUFFIX) or dtype.name in NOT_IN_SAFETENSORS
    may_be_plain = mask is None and not rounded and not unnamed
    if may_be_plain and len(shape) < 2:
        bound = live_values.bound_bits(words, dtype) / 8
        return _Layer(size=TensorSize.plain(key, tensor, bound), dtype=dtype, stored=dtype, data=b"", may_be_plain=True)
    said = encoding.encode(alive.reshape(encoding.grid(shape)), effort)
    out = StreamWriter(effort)
    live_values.encode(live, stored, out)
    dense_bytes = tensor.numel() * dtype.itemsize
    data = _padded(said.data + out.getvalue(), dense_bytes)
    size = TensorSize(
        key=key,
        shape=shape,
        encoding=said.name,
        weights=tensor.numel(),
        live=int(np.count_nonzero(alive)),
        masked=mask is not None,
        dense_bytes=dense_bytes,
        packed_bytes=len(data),
        bound_bytes=(
            (said.bound_bits + live_values.bound_bits(live, stored)) / 8
            if mask is not None or len(shape) >= 2
            else live_values.bound_bits(words, stored) / 8  # as vectors that are left plain
        ),
    )
    layer = _Layer(size=size, dtype=dtype, stored=stored, data=data, may_be_plain=may_be_plain)
    found = codebook.find(live, stored)
    if found is None or (mask is None and len(shape) < 2):
        return layer
    out = StreamWriter(effort)
    codebook.encode(found, out)
    short = _padded(said.data + out.getvalue(), dense_bytes)
    bound = min(size.bound_bytes, (said.bound_bits + found.bound_bits(stored)) / 8)
    layer = replace(layer, size=replace(size, bound_bytes=bound))
    if len(short) >= len(data):
        return layer
    size = replace(layer.size, packed_bytes=len(short), codebook=len(found.words))
    return replace(layer, shorter=replace(layer, size=size, data=short))


def _padded(data: bytes, dense_bytes: int) -> bytes:
    """The bytes of a layer, with zeros where a reader would not believe that so few are so many."""
    return data + bytes(max(0, -(-(dense_bytes - FREE_BYTES) // MOST_PER_BYTE) - len(data)))


def _with_codebooks(layers: list[_Layer], *, asked: bool) -> list[_Layer]:
    """The layers with codebooks, where that was asked for or is worth a file that older versions refuse."""
    short = [layer.shorter or layer for layer in layers]
    whole = sum(len(layer.data) for layer in layers)
    saved = whole - sum(len(layer.data) for layer in short)
    return short if asked or saved > _WORTH_IT * whole else layers


def _mask(key: str, mask: Tensor, words: Any, dtype: Dtype) -> Bits:
    """The flat mask, after checking that all dead weights are +0."""
    alive: Bits = mask.detach().cpu().contiguous().reshape(-1).numpy()
    back = int(np.count_nonzero(zeros_apart(words, dtype) & ~alive))
    if back:
        raise Mismatch(
            f"{key} has {back} dead weights that are not +0.0; --masks from-zeros packs the weights as they are"
        )
    return alive


def _plain_keys(layers: list[_Layer], keep_plain: bool) -> set[str]:
    """The never-pruned tensors that are stored as they are, readable by any safetensors reader.

    All vectors (norms, biases, statistics), and of the others the small ones, as long as they cost next to nothing.
    """
    left = {layer.size.key for layer in layers if layer.may_be_plain and (keep_plain or len(layer.size.shape) < 2)}
    rest = [layer.size for layer in layers if layer.may_be_plain and layer.size.key not in left]
    room = FOR_READERS * sum(len(layer.data) for layer in layers)
    for size in sorted(rest, key=lambda s: s.dense_bytes - s.packed_bytes):
        room -= size.dense_bytes - size.packed_bytes
        if room < 0:
            break
        left.add(size.key)
    return left


def _table_row(layer: _Layer) -> dict[str, Any]:
    """A packed layer's row of the table."""
    size = layer.size
    line: dict[str, Any] = {"dtype": layer.dtype.name, "shape": list(size.shape), "encoding": size.encoding}
    if layer.stored is not layer.dtype:
        line["stored"] = layer.stored.name
    if not size.masked:
        line["masked"] = False
    if size.codebook is not None:
        line["codebook"] = size.codebook
    return line | {"live": size.live, "crc32": f"{zlib.crc32(layer.data):08x}"}


def _verify(written: Path, path: Path, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Reads everything back and compares it to the bit."""
    file = PackedFile(written)

    def same(key: str) -> bool:
        tensor, mask = file.read(key, mask=True)
        dtype = dtype_of(state[key], key)
        if tensor.dtype != state[key].dtype or tensor.shape != state[key].shape or (mask is None) != (key not in masks):
            return False
        if mask is not None and not torch.equal(mask, masks[key].cpu()):
            return False
        return bool(np.array_equal(words_of(tensor, dtype), words_of(state[key], dtype)))

    once = list(distinct(state))
    wrong = [key for key, right in zip(once, in_threads(same, once), strict=True) if not right]
    if wrong or file.keys != list(state) or file.ties != ties_of(state):
        raise StarfireError(f"{path} was not written: {', '.join(wrong[:3]) or 'its keys'} did not read back the same")


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
