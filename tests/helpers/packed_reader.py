"""A reader for packed files, written from docs/formats.md alone: nothing of starfire is imported here."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib

import zstandard

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "C128": 16}
SIZES |= {f"{sign}{bits}": bits // 8 for sign in "IU" for bits in (8, 16, 32, 64)} | {"BOOL": 1}


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        assert self.at <= len(self.data)
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def blob(self, n: int) -> bytes:
        method, length = self.byte(), self.number()
        data = self.take(length)
        if method == 1:
            data = zstandard.ZstdDecompressor().decompress(data)
        assert method in (0, 1) and len(data) == n
        return data

    def small(self, n: int, limit: int) -> list[int]:
        if limit <= 1:
            return [0] * n
        w = next(w for w in (1, 2, 4, 8) if limit <= 2**w)
        data = self.blob(math.ceil(n * w / 8))
        return [data[i * w // 8] >> i * w % 8 & 2**w - 1 for i in range(n)]

    def bits(self, n: int) -> list[int]:
        kind = self.byte()
        if kind in (0, 1):
            return [kind] * n
        if kind == 2:
            data = self.blob(math.ceil(n / 8))
            return [data[i // 8] >> i % 8 & 1 for i in range(n)]
        assert kind == 3
        count, length = self.number(), self.number()
        bits, at = [0] * n, 0
        for byte in self.blob(length):
            at += byte
            if byte < 255:
                bits[at] = 1
                at += 1
                count -= 1
        assert count == 0
        return bits

    def symbols(self, n: int) -> tuple[list[int], list[int]]:
        alphabet: list[int] = []
        for _ in range(self.number()):
            step = self.number()
            alphabet.append(step if not alphabet else alphabet[-1] + 1 + step)
        return [alphabet[i] for i in self.small(n, len(alphabet))], alphabet


def read_mask(encoding: str, shape: list[int], data: Bytes) -> list[int]:
    K, C, n = (1, math.prod(shape), 1) if len(shape) < 2 else (shape[0], shape[1], math.prod(shape[2:]))
    if encoding == "dense":
        return [1] * (K * C * n)
    if encoding == "unstructured":
        return data.bits(K * C * n)
    if encoding == "ck":
        return [bit for bit in data.bits(K * C) for _ in range(n)]
    if encoding == "blocks":
        side = data.byte()
        columns = math.ceil(C / side)
        tiles = data.bits(math.ceil(K / side) * columns)
        mask = [tiles[k // side * columns + c // side] for k in range(K) for c in range(C)]
        inside = iter(data.bits(sum(mask)))
        return [next(inside) if bit else 0 for bit in mask]
    assert encoding == "window"
    counts, alphabet = data.symbols(K * C)
    most = max((math.comb(n, k) for k in alphabet), default=1)
    some = [i for i, k in enumerate(counts) if 0 < k < n]
    numbers = dict.fromkeys(some, 0)
    shift = 0
    while (most - 1) >> shift:
        for i, byte in zip(some, data.small(len(some), min(255, (most - 1) >> shift) + 1), strict=True):
            numbers[i] |= byte << shift
        shift += 8
    mask = []
    for i, k in enumerate(counts):
        window = [1 if k == n else 0] * n
        if i in numbers:
            number = numbers[i]
            for place in range(n - 1, -1, -1):
                if k and number >= math.comb(place, k):
                    window[place] = 1
                    number -= math.comb(place, k)
                    k -= 1
        mask += window
    return mask


def read_values(v: int, dtype: str, data: Bytes) -> list[int]:
    parts = 2 if dtype in ("C64", "C128") else 1
    v, W = v * parts, 8 * SIZES[dtype] // parts
    if v == 0:
        return []
    if W == 8:
        words, _ = data.symbols(v)
    else:
        m = data.byte()
        words, _ = data.symbols(v)
        for w in (8, 4, 2, 1):
            if 8 - m & w:
                words = [word << w | more for word, more in zip(words, data.small(v, 2**w), strict=True)]
        for _ in range(W // 16 - 1):
            low = struct.unpack(f"<{v}H", data.blob(2 * v))
            words = [word << 16 | more for word, more in zip(words, low, strict=True)]
    if dtype[0] in "FBC" and dtype != "BOOL":
        words = [word >> 1 | (word & 1) << W - 1 for word in words]
    return words


def read_codebook(v: int, size: int, dtype: str, data: Bytes) -> list[int]:
    width = SIZES[dtype]
    table = data.blob(size * width)
    words = [int.from_bytes(table[at : at + width], "little") for at in range(0, len(table), width)]
    numbers = data.small(v, min(size, 16))
    if size > 16:
        late = iter(data.small(numbers.count(15), size - 15))
        numbers = [15 + next(late) if number == 15 else number for number in numbers]
    return [words[number] for number in numbers]


def convert(words: list[int], stored: str, dtype: str) -> bytes:
    if stored == dtype:
        parts = 2 if dtype in ("C64", "C128") else 1
        return b"".join(word.to_bytes(SIZES[dtype] // parts, "little") for word in words)
    if stored == "BF16":
        floats = [struct.unpack("<f", (word << 16).to_bytes(4, "little"))[0] for word in words]
    else:
        assert stored == "F16"
        floats = [struct.unpack("<e", word.to_bytes(2, "little"))[0] for word in words]
    return struct.pack(f"<{len(floats)}{'f' if dtype == 'F32' else 'd'}", *floats)


def read(file: bytes) -> tuple[dict[str, tuple[str, list[int], bytes]], dict[str, list[int]], dict[str, str]]:
    """(key -> dtype, shape, bytes; key -> mask; metadata) of a packed file."""
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    about = header.pop("__metadata__")
    assert about["format"] == "starfire-packed" and about["version"] in ("1", "2")
    marked = file[:start].replace(about["header_crc32"].encode(), b"00000000", 1)
    assert f"{zlib.crc32(marked):08x}" == about["header_crc32"]
    layers = json.loads(about["layers"])
    checksums = about["plain_crc32"]
    tensors, masks = {}, {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = file[start + begin : start + end]
        key = name.removesuffix(".packed")
        if not name.endswith(".packed") or key not in layers:
            assert f"{zlib.crc32(data):08x}" == checksums[:8]
            checksums = checksums[8:]
            tensors[name] = entry["dtype"], entry["shape"], data
            continue
        layer = layers[key]
        assert f"{zlib.crc32(data):08x}" == layer["crc32"]
        source = Bytes(data)
        mask = read_mask(layer["encoding"], layer["shape"], source)
        assert sum(mask) == layer["live"]
        stored = layer.get("stored", layer["dtype"])
        if "codebook" in layer:
            assert about["version"] == "2"
            live = read_codebook(layer["live"], layer["codebook"], stored, source)
        else:
            live = read_values(layer["live"], stored, source)
        assert not any(source.data[source.at :])
        values, size = convert(live, stored, layer["dtype"]), SIZES[layer["dtype"]]
        places = iter(range(0, len(values), size))
        dense = b"".join(values[(i := next(places)) : i + size] if alive else bytes(size) for alive in mask)
        tensors[key] = layer["dtype"], layer["shape"], dense
        if layer.get("masked", True):
            masks[key] = mask
    keys = list(tensors)
    ties = json.loads(about.get("ties", "{}"))
    for key, tie in ties.items():
        keys.insert(tie["at"], key)
    tensors = {key: tensors[ties[key]["is"] if key in ties else key] for key in keys}
    sha = hashlib.sha256()
    for key in sorted(masks):
        sha.update(key.encode() + b"\0" + "x".join(map(str, tensors[key][1])).encode() + b"\0")
        bits = masks[key]
        sha.update(bytes(sum(bit << j for j, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8)))
    assert sha.hexdigest() == about["masks_digest"]
    return tensors, masks, about
