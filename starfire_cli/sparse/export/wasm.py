"""Makes a module of WebAssembly that runs by itself from the relocatable one that LLVM emits.

The memory becomes the module's own, exported as `memory`; data lie from `BASE` on, and the exported global `heap` is
the first byte behind them. Addresses are filled in; LLVM leaves five bytes for each. The formats: the specification's
section 5.5 (modules), and "WebAssembly Object File Linking" of its tool conventions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BASE = 1024  # bytes in front of the data, lest anything lie at address 0
_PAGE = 65536
_CUSTOM, _IMPORT, _MEMORY, _GLOBAL, _EXPORT, _CODE, _DATA = 0, 2, 5, 6, 7, 10, 11
_HEADER = b"\0asm\1\0\0\0"
_FUNCTION, _ADDRESS, _SIGNED_ADDRESS = 0, 3, 4  # relocations: R_WASM_FUNCTION_INDEX_LEB, _MEMORY_ADDR_LEB and _SLEB
_ORDER = (1, 3, 4, _MEMORY, _GLOBAL, _EXPORT, 8, 9, 12, _CODE, _DATA)


class _Reader:
    """Reads numbers and names from bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, *, signed: bool = False) -> int:
        """LEB128."""
        found = shift = 0
        while True:
            byte = self.byte()
            found |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return found - (1 << shift) if signed and byte & 0x40 else found

    def name(self) -> str:
        return self.take(self.number()).decode()

    @property
    def left(self) -> bool:
        """Whether there is more."""
        return self.at < len(self.data)


@dataclass(frozen=True)
class _Symbol:
    kind: int
    index: int  # of a function; the address of data
    defined: bool
    name: str


def link(module: bytes) -> bytes:
    """The module that runs by itself."""
    sections = list(_sections(module))
    by_kind = {kind: content for kind, content in sections if kind != _CUSTOM}
    custom = {}
    for kind, content in sections:
        if kind == _CUSTOM:
            reader = _Reader(content)
            custom[reader.name()] = reader
    starts = _segments(by_kind[_DATA])
    symbols = _symbols(custom["linking"], [start for start, _ in starts])
    _check_imports(by_kind[_IMPORT], symbols)
    end = BASE + max(start + len(data) for start, data in starts)
    heap = -(-end // 64) * 64
    by_kind[_CODE] = _relocated(by_kind[_CODE], custom["reloc.CODE"], symbols)
    assert "reloc.DATA" not in custom, "tables hold no addresses"
    by_kind[_DATA] = _vector([b"\0\x41" + _signed(BASE + start) + b"\x0b" + _sized(data) for start, data in starts])
    by_kind[_MEMORY] = b"\1\0" + _number(-(-heap // _PAGE))
    by_kind[_GLOBAL] = b"\1\x7f\0\x41" + _signed(heap) + b"\x0b"
    reader = _Reader(by_kind[_EXPORT])
    count = reader.number()
    exports = reader.data[reader.at :] + _sized(b"memory") + b"\2\0" + _sized(b"heap") + b"\3\0"
    by_kind[_EXPORT] = _number(count + 2) + exports
    return _HEADER + b"".join(bytes([kind]) + _sized(by_kind[kind]) for kind in _ORDER if kind in by_kind)


def _sections(module: bytes) -> Iterator[tuple[int, bytes]]:
    assert module.startswith(_HEADER)
    reader = _Reader(module)
    reader.take(len(_HEADER))
    while reader.left:
        kind = reader.byte()
        yield kind, reader.take(reader.number())


def _segments(section: bytes) -> list[tuple[int, bytes]]:
    """(address, bytes) of each piece of data."""
    reader, found = _Reader(section), []
    for _ in range(reader.number()):
        assert reader.number() == 0 and reader.byte() == 0x41, "an active segment at i32.const"
        start = reader.number(signed=True)
        assert reader.byte() == 0x0B
        found.append((start, reader.take(reader.number())))
    return found


def _symbols(reader: _Reader, starts: list[int]) -> list[_Symbol]:
    assert reader.number() == 2, "the version of the section `linking`"
    found: list[_Symbol] = []
    while reader.left:
        kind, size = reader.byte(), reader.number()
        if kind != 8:  # WASM_SYMBOL_TABLE
            reader.take(size)
            continue
        for _ in range(reader.number()):
            kind, flags = reader.byte(), reader.number()
            defined = not flags & 0x10
            if kind == 1:
                name, index = reader.name(), 0
                if defined:
                    segment, offset, _ = reader.number(), reader.number(), reader.number()
                    index = starts[segment] + offset
            elif kind == 3:
                index, name = reader.number(), "section"
            else:
                index = reader.number()
                name = reader.name() if defined or flags & 0x40 else "import"
            found.append(_Symbol(kind, index, defined, name))
    return found


def _check_imports(section: bytes, symbols: list[_Symbol]) -> None:
    missing = [symbol.name for symbol in symbols if not symbol.defined]
    assert not missing, f"the code calls for {missing}"
    reader = _Reader(section)
    assert reader.number() == 1, "the memory is all that is imported"


def _relocated(code: bytes, relocations: _Reader, symbols: list[_Symbol]) -> bytes:
    found = bytearray(code)
    relocations.number()  # the section
    for _ in range(relocations.number()):
        kind, at, symbol = relocations.byte(), relocations.number(), symbols[relocations.number()]
        if kind == _FUNCTION:
            found[at : at + 5] = _padded(symbol.index)
        elif kind in (_ADDRESS, _SIGNED_ADDRESS):
            found[at : at + 5] = _padded(BASE + symbol.index + relocations.number(signed=True))
        else:
            raise AssertionError(f"relocation {kind}")
    return bytes(found)


def _number(value: int) -> bytes:
    """LEB128 of a number that is not negative."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _signed(value: int) -> bytes:
    """Likewise, as a signed number: the last byte's highest bit stays clear."""
    found = bytearray()
    while value > 0x3F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _padded(value: int) -> bytes:
    """LEB128 of five bytes; below 2^31 it reads the same as a signed number."""
    assert 0 <= value < 1 << 31
    return bytes([*(value >> 7 * i & 0x7F | 0x80 for i in range(4)), value >> 28])


def _sized(data: bytes) -> bytes:
    return _number(len(data)) + data


def _vector(items: list[bytes]) -> bytes:
    return _number(len(items)) + b"".join(items)
