"""What a packed layer is written with: numbers, byte strings, bits and small symbols (docs/formats.md).

Everything is little-endian. A `StreamReader` trusts nothing: each size is compared with what must come before any
memory is taken, and whatever does not fit raises `Damaged`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from starfire_cli.damage import Damaged
from starfire_cli.formats.packed.small import Bytes, pack, unpack, width

Bits = NDArray[np.bool_]

RAW, ZSTD = 0, 1
NONE_SET, ALL_SET, BITMAP, GAPS = 0, 1, 2, 3
EFFORTS = ("fast", "normal", "best")
_GAPS_AT_ONCE = 1 << 18  # so that their positions, of 8 bytes each, stay small


class StreamWriter:
    """Collects a layer's bytes.

    Args:
        effort: "fast", "normal" or "best": how many ways of writing the same are tried for size.
    """

    def __init__(self, effort: str = "normal") -> None:
        self.effort = effort
        self._parts: list[bytes] = []

    def getvalue(self) -> bytes:
        """All that was written."""
        return b"".join(self._parts)

    def byte(self, value: int) -> None:
        """One byte."""
        self._parts.append(bytes([value]))

    def number(self, value: int) -> None:
        """A number >= 0, seven bits a byte, the lowest first; the top bit says that more follow (LEB128)."""
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
        self._parts.append(bytes(out))

    def blob(self, data: bytes) -> None:
        """Bytes whose number the reader knows already: as they are, or as one zstd frame where that is smaller."""
        frames = [c.compress(data) for c in _compressors(self.effort)] if len(data) > 15 else []
        best = min(frames, key=len, default=data)
        method = ZSTD if len(best) < len(data) else RAW
        self.byte(method)
        self.number(len(best) if method == ZSTD else len(data))
        self._parts.append(best if method == ZSTD else data)

    def smallest(self, *ways: Callable[[StreamWriter], None]) -> None:
        """Write the same thing in each of several ways and keep the shortest (of equals the first)."""
        tried = []
        for way in ways:
            writer = StreamWriter(self.effort)
            way(writer)
            tried.append(writer.getvalue())
        self._parts.append(min(tried, key=len))

    def bits(self, bits: Bits) -> None:
        """Bits whose number the reader knows already: as a bitmap, or as the gaps between those that are set."""
        set_at = np.flatnonzero(bits)
        if set_at.size in (0, bits.size):
            self.byte(NONE_SET if set_at.size == 0 else ALL_SET)
            return

        def bitmap(writer: StreamWriter) -> None:
            writer.byte(BITMAP)
            writer.blob(np.packbits(bits, bitorder="little").tobytes())

        def gaps(writer: StreamWriter) -> None:
            gap = np.diff(set_at, prepend=-1) - 1
            long = gap // 255
            ends = np.cumsum(long + 1) - 1  # each gap is `long` bytes of 255 and one byte below 255
            data = np.full(int(ends[-1]) + 1, 255, np.uint8)
            data[ends] = gap - 255 * long
            writer.byte(GAPS)
            writer.number(set_at.size)
            writer.number(data.size)
            writer.blob(data.tobytes())

        sparse = set_at.size * 6 < bits.size  # denser than that a bitmap always wins
        self.smallest(*((bitmap, gaps) if sparse else (bitmap,)))

    def symbols(self, index: Bytes, alphabet: NDArray[np.int64]) -> None:
        """One of up to 256 symbols for each position: the alphabet, ascending, then positions in it."""
        self.number(alphabet.size)
        for step in np.diff(alphabet, prepend=-1) - 1:
            self.number(int(step))
        self.small(index, alphabet.size)

    def small(self, values: Bytes, limit: int) -> None:
        """Values below `limit` (at most 256), as many in a byte as fit when each takes 1, 2, 4 or 8 bits."""
        if limit > 1:
            self.blob(pack(values, width(limit)).tobytes())


class StreamReader:
    """Reads what a `StreamWriter` wrote. Every method raises `Damaged` where the bytes do not fit."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def finish(self) -> None:
        """Nothing but padding may be left: zeros."""
        if np.frombuffer(self._data[self._at :], np.uint8).any():
            raise Damaged("bytes are left over")

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self._at:
            raise Damaged(f"{count} bytes are announced, {len(self._data) - self._at} are left")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        """One byte."""
        return self._take(1)[0]

    def number(self) -> int:
        """See `StreamWriter.number`; below 2^63."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Damaged("a number has no end")

    def numbers(self, count: int) -> list[int]:
        """So many of `number`, faster than one by one: most take a byte."""
        found: list[int] = []
        while len(found) < count:
            near = self._data[self._at : self._at + count - len(found)].tobytes()
            short = next((i for i, byte in enumerate(near) if byte > 127), len(near))
            found += near[:short]
            self._at += short
            if len(found) < count:
                found.append(self.number())
        return found

    def blob(self, expected: int) -> memoryview:
        """See `StreamWriter.blob`; `expected` bytes, without a copy where they are stored as they are."""
        method, length = self.byte(), self.number()
        data = self._take(length)
        if method == RAW:
            if length != expected:
                raise Damaged(f"{length} bytes are stored where {expected} belong")
            return data
        if method != ZSTD:
            raise Damaged(f"unknown way {method} of storing bytes")
        try:
            size = zstandard.frame_content_size(data)
            if size != expected:
                raise Damaged(f"{size} bytes are compressed where {expected} belong")
            plain = memoryview(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False))
        except zstandard.ZstdError as error:
            raise Damaged(f"zstd: {error}") from None
        if len(plain) != expected:
            raise Damaged(f"{len(plain)} bytes were compressed where {expected} belong")
        return plain

    def bits(self, count: int) -> Bits:
        """See `StreamWriter.bits`."""
        kind = self.byte()
        if kind in (NONE_SET, ALL_SET):
            return np.full(count, kind == ALL_SET)
        if kind == BITMAP:
            data = np.frombuffer(self.blob(-(-count // 8)), np.uint8)
            if count % 8 and data[-1] >> (count % 8):
                raise Damaged("a bitmap goes on after its end")
            return np.unpackbits(data, count=count, bitorder="little").view(np.bool_)
        if kind != GAPS:
            raise Damaged(f"unknown kind {kind} of bits")
        set_bits, length = self.number(), self.number()
        if set_bits > count or length > set_bits + count // 255:
            raise Damaged(f"{length} bytes of gaps for {set_bits} of {count} bits")
        data = np.frombuffer(self.blob(length), np.uint8)
        bits = np.zeros(count, np.bool_)
        at = found = 0
        for start in range(0, length, _GAPS_AT_ONCE):
            part = data[start : start + _GAPS_AT_ONCE]
            ends = part != 255
            position = at + np.cumsum(part, dtype=np.int64) + np.cumsum(ends)
            at = int(position[-1])
            if at > count:
                break
            bits[position[ends] - 1] = True
            found += int(np.count_nonzero(ends))
        if at > count or found != set_bits or (length and data[-1] == 255):
            raise Damaged("gaps lead out of the layer")
        return bits

    def symbols(self, count: int, limit: int) -> tuple[Bytes, NDArray[np.int64]]:
        """See `StreamWriter.symbols`: (positions in the alphabet, the alphabet), all symbols below `limit`."""
        size = self.number()
        if size > 256 or (size == 0 and count):
            raise Damaged(f"an alphabet of {size} symbols")
        alphabet = np.cumsum(np.array(self.numbers(size), np.float64) + 1) - 1  # floats cannot wrap
        if size and alphabet[-1] >= limit:
            raise Damaged("a symbol is out of range")
        index = self.small(count, size)
        if size > 1 and count and int(index.max()) >= size:
            raise Damaged("a symbol is not in its alphabet")
        return index, alphabet.astype(np.int64)

    def small(self, count: int, limit: int) -> Bytes:
        """See `StreamWriter.small`; what is at or above `limit` is the caller's to find."""
        if limit <= 1:
            return np.zeros(count, np.uint8)
        bits = width(limit)
        return unpack(np.frombuffer(self.blob(-(-count * bits // 8)), np.uint8), bits, count)


def _compressors(effort: str) -> list[Any]:
    """Settings to try. The bytes here have skewed frequencies but repeat nothing, so matches are best left alone."""
    make = zstandard.ZstdCompressionParameters
    frequencies = make(
        strategy=zstandard.STRATEGY_FAST, window_log=17, hash_log=6, chain_log=6, min_match=7, write_checksum=False
    )
    tries = [zstandard.ZstdCompressor(compression_params=frequencies)]
    if effort != "fast":
        tries.append(zstandard.ZstdCompressor(level=3))
    if effort == "best":
        tries.append(zstandard.ZstdCompressor(level=19))
    return tries
