"""Packed files: reading weights and masks, bit for bit as they were packed (docs/formats.md).

A packed file is a safetensors file. Tensors that were never pruned lie in it as they are; each packed layer is a
string of bytes called KEY.packed, described in the metadata. Nothing in the file is believed before its checksum is
right, and no memory is taken that its size does not account for.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from starfire_cli.damage import Damaged, reading
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.meta_reader import read_meta
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.packed import encoding
from starfire_cli.formats.packed.codebook import LARGEST, CodebookValues
from starfire_cli.formats.packed.container import VERSION, Container, Piece, checked_shape, is_marked
from starfire_cli.formats.packed.dtypes import BY_NAME, NOT_IN_SAFETENSORS, Dtype, tensor_of
from starfire_cli.formats.packed.encoding import Alive
from starfire_cli.formats.packed.live_values import LiveValues, Words
from starfire_cli.formats.packed.streams import StreamReader
from starfire_cli.pruning.masks import digest
from starfire_cli.text import size_text

T = TypeVar("T")
SUFFIX = ".packed"
MOST_PER_BYTE = 4096  # dense bytes that one packed byte may stand for; the writer fills up with zeros below that
FREE_BYTES = 65536  # and so many beside
_CHUNK = 1 << 18  # weights unpacked at a time


@dataclass(frozen=True, kw_only=True)
class PackedLayer:
    """One row of a packed file's layer table.

    Args:
        key: in the state dict.
        dtype: of the tensor that comes back.
        stored: what its values are written as; another type only where they were rounded.
        shape: of the tensor.
        encoding: of its mask.
        live: how many values are written.
        codebook: how many different values there are among them, where they are numbers of a codebook; else None.
        masked: whether the checkpoint had a mask for it; otherwise the zeros are just zeros.
        crc32: of its bytes.
        size: how many bytes they are.
    """

    key: str
    dtype: Dtype
    stored: Dtype
    shape: tuple[int, ...]
    encoding: str
    live: int
    codebook: int | None
    masked: bool
    crc32: str
    size: int

    @property
    def dense_bytes(self) -> int:
        """Bytes of the tensor in memory."""
        return prod(self.shape) * self.dtype.itemsize


def is_packed(path: Path) -> bool:
    """Whether `path` is (or once was, if damaged) a packed file."""
    return is_marked(path)


def load(path: Path) -> Checkpoint:
    """Reads a packed file. Raises StarfireError that names the layer where it is damaged."""
    file = PackedFile(path)
    keys = [key for key in file.keys if key not in file.ties]
    layers = dict(zip(keys, in_threads(lambda key: file.read(key, mask=True), keys), strict=True))
    state = {key: layers[file.ties.get(key, key)][0] for key in file.keys}
    masks = {key: mask for key, (_, mask) in layers.items() if mask is not None}
    if digest(masks) != file.masks_digest:
        raise StarfireError(f"{path} is damaged: its masks do not match their digest")
    return Checkpoint(path=path, format="packed", state=state, masks=masks or None, meta=file.meta)


def load_state(path: Path) -> dict[str, Tensor]:
    """Reads the weights alone, in the order of the checkpoint that was packed. Raises as `load`."""
    file = PackedFile(path)
    keys = [key for key in file.keys if key not in file.ties]
    tensors = dict(zip(keys, in_threads(lambda key: file.read(key, mask=False)[0], keys), strict=True))
    return {key: tensors[file.ties.get(key, key)] for key in file.keys}


class PackedFile:
    """An open packed file. Its layer table is checked on opening, its tensors on reading.

    `keys` are the names of all tensors in the state dict's order, `ties` those of them that are further names of a
    tensor -> its first name.

    Raises StarfireError if it is damaged, of another version, or announces more than it can hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self._container = Container(path)
            self.layers: dict[str, PackedLayer] = self._table()
            self.meta = read_meta(self._json("meta"), path)
            self.masks_digest = self._container.metadata.get("masks_digest", "")
            self._crc32 = self._plain_checksums()
            self.keys, self.ties = self._names()

    @property
    def plain(self) -> dict[str, Piece]:
        """The tensors that are stored as they are."""
        packed = {key + SUFFIX for key in self.layers}
        return {name: piece for name, piece in self._container.pieces.items() if name not in packed}

    def read(self, key: str, *, mask: bool) -> tuple[Tensor, Tensor | None]:
        """A tensor and, on request, its mask if it has one; may be called from several threads."""
        key = self.ties.get(key, key)
        with reading(self.path, key):
            if key in self.layers:
                return self._layer(self.layers[key], mask)
            return self._plain(self._container.pieces[key]), None

    def _plain(self, piece: Piece) -> Tensor:
        data, dtype = self._container.read(piece), BY_NAME[piece.dtype]
        _check_crc(data, self._crc32[piece.name])
        words = np.frombuffer(data, dtype.word).copy()
        return tensor_of(_sane(words, dtype), dtype, piece.shape)

    def _layer(self, layer: PackedLayer, wants_mask: bool) -> tuple[Tensor, Tensor | None]:
        data = self._container.read(self._container.pieces[layer.key + SUFFIX])
        _check_crc(data, layer.crc32)
        reader = StreamReader(data)
        alive = encoding.decode(layer.encoding, layer.shape, reader)
        count = prod(layer.shape)
        live = int(np.count_nonzero(alive.bits)) * alive.each
        if live != layer.live:
            raise Damaged(f"its mask keeps {live} weights, the table says {layer.live}")
        stored = layer.stored
        values: LiveValues | CodebookValues
        if layer.codebook is None:
            values = LiveValues(live * stored.words, stored, reader)
        else:
            values = CodebookValues(live, layer.codebook, stored, reader)
        reader.finish()
        words = np.zeros(count * stored.words, stored.word)
        if live:
            _scatter(words, alive._replace(each=alive.each * stored.words), values)
        tensor = tensor_of(_sane(words, stored), stored, layer.shape).to(layer.dtype.torch)
        if not wants_mask or not layer.masked:
            return tensor, None
        return tensor, torch.from_numpy(alive.mask()).reshape(layer.shape)

    def _table(self) -> dict[str, PackedLayer]:
        pieces = self._container.pieces
        layers = {}
        with reading(self.path, "its layer table"):
            for key, entry in self._json("layers").items():
                piece = pieces[key + SUFFIX]
                if piece.dtype != "U8" or piece.shape != (piece.stop - piece.start,):
                    raise Damaged(f"{piece.name} is not a string of its bytes")
                layers[key] = PackedLayer(
                    key=key,
                    dtype=BY_NAME[entry["dtype"]],
                    stored=BY_NAME[entry.get("stored", entry["dtype"])],
                    shape=checked_shape(entry["shape"]),
                    encoding=str(entry["encoding"]),
                    live=entry["live"],
                    codebook=entry.get("codebook"),
                    masked=entry.get("masked", True) is True,
                    crc32=str(entry["crc32"]),
                    size=piece.stop - piece.start,
                )
                _check_size(layers[key])
                if "codebook" in entry:
                    _check_codebook(layers[key], self._container.metadata["version"])
            for name, piece in pieces.items():
                size = prod(piece.shape) * BY_NAME[piece.dtype].itemsize
                if piece.stop - piece.start != size or piece.dtype in NOT_IN_SAFETENSORS:
                    raise Damaged(f"{name} has not the bytes of its shape")
                _check_axes(name, piece.shape, piece.dtype, piece.stop - piece.start)
        total = sum(layer.dense_bytes for layer in layers.values())
        memory = _memory()
        if memory is not None and total > memory:
            raise StarfireError(f"{self.path} unpacks to {size_text(total)}; this machine has {size_text(memory)}")
        return layers

    def _names(self) -> tuple[list[str], dict[str, str]]:
        """(the names of all tensors in the state dict's order, further names of tied tensors -> the first)."""
        packed = {key + SUFFIX: key for key in self.layers}
        keys = [packed.get(name, name) for name in self._container.pieces]
        if "ties" not in self._container.metadata:
            return keys, {}
        own, ties = set(keys), {}
        try:
            for key, entry in self._json("ties").items():
                first, at = entry["is"], entry["at"]
                if key in own or first not in own or type(at) is not int or not 0 < at <= len(keys):
                    raise ValueError(f"{key} is no further name")
                ties[key] = first
                keys.insert(at, key)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"its ties: {type(error).__name__}: {error}") from None
        return keys, ties

    def _plain_checksums(self) -> dict[str, str]:
        text = self._container.metadata.get("plain_crc32", "")
        names = list(self.plain)
        if len(text) != 8 * len(names):
            raise Damaged(f"{len(names)} plain tensors, but {len(text) // 8} checksums")
        return {name: text[8 * i : 8 * i + 8] for i, name in enumerate(names)}

    def _json(self, name: str) -> dict[str, Any]:
        with reading(self.path, f"its {name} cannot be read"):
            value = json.loads(self._container.metadata[name])
        if not isinstance(value, dict):
            raise Damaged(f"its {name} is no object")
        return value


def in_threads(function: Callable[[str], T], keys: Iterable[str]) -> list[T]:
    """`function` of each key, in order and in parallel: numpy and zstd release the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        return list(pool.map(function, keys))


def _scatter(words: Words, alive: Alive, values: LiveValues | CodebookValues) -> None:
    """Writes the values to the positions in `alive`, in order; in pieces that stay in the cache."""
    if alive.bits.all():
        for start in range(0, len(words), _CHUNK):
            part = words[start : start + _CHUNK]
            part[:] = values.words(start, start + len(part))
        return
    done = 0
    step = max(1, _CHUNK // alive.each)
    for start in range(0, len(alive.bits), step):
        places = alive.places(start, start + step)
        words[start * alive.each : (start + step) * alive.each][places] = values.words(done, done + places.size)
        done += places.size


def _check_crc(data: memoryview, expected: str) -> None:
    if f"{zlib.crc32(data):08x}" != expected:
        raise Damaged("its bytes do not match their checksum")


def _check_size(layer: PackedLayer) -> None:
    _check_axes(layer.key, layer.shape, layer.dtype.name, layer.size)
    if type(layer.live) is not int or not 0 <= layer.live <= prod(layer.shape):
        raise Damaged(f"{layer.key} has {layer.live} live weights")


def _check_codebook(layer: PackedLayer, version: str) -> None:
    size, stored = layer.codebook, layer.stored
    if version == VERSION:
        raise Damaged(f"{layer.key} has a codebook, which version {VERSION} has not")
    if type(size) is not int or not 1 <= size <= min(LARGEST, layer.live) or stored.bytes == 1 or stored.words > 1:
        raise Damaged(f"{layer.key} has a codebook of {size!s:.40} values for {layer.live} of {stored.name}")


def _check_axes(name: str, shape: tuple[int, ...], dtype: str, size: int) -> None:
    """An axis of 0 counts as 1: it leaves nothing to hold, but the others are still counted along."""
    dense = prod(s for s in shape if s) * BY_NAME[dtype].itemsize
    if dense > MOST_PER_BYTE * size + FREE_BYTES:
        raise Damaged(f"{name} would unpack to {size_text(min(dense, 1 << 90))} from {size} bytes")


def _sane(words: Any, dtype: Dtype) -> Any:
    if dtype.name == "BOOL" and words.size and words.max() > 1:
        raise Damaged("a bool is neither 0 nor 1")
    return words


def _memory() -> int | None:
    """The machine's memory in bytes, where it is known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
