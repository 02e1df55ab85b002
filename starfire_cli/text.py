"""Formats names, sizes and shapes from files for people."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence

_KILO = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def printable(text: str, limit: int = 400) -> str:
    """`text` on one line and safe for a terminal: what a file brings along may hold line ends and escape codes."""
    safe = escaped(text[: 2 * limit])
    return safe if len(safe) <= limit else f"{safe[: limit - 3]}..."


def escaped(text: str) -> str:
    r"""`text` with everything that is no character to look at shown as `\x1b`, `\n`, `\u202e`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def size_text(count: float) -> str:
    """Bytes for people: `1.5 MB`; decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def flops_text(count: float, of: float | None = None) -> str:
    """FLOPs for people: `1.5 PFLOP`; with those of something larger, `0.52 of 0.81 PFLOP`."""
    size, prefix = next(((s, p) for s, p in _KILO if max(count, of or 0) >= s), (1.0, ""))
    return f"{count / size:.3g}{'' if of is None else f' of {of / size:.3g}'} {prefix}FLOP"


def duration_text(seconds: float) -> str:
    """A time for people: `0.4 s`, `45 s`, `12 min`, `3.5 h`."""
    size, unit = (1, "s") if seconds < 120 else (60, "min") if seconds < 7200 else (3600, "h")
    return f"{seconds / size:.2g} {unit}" if seconds / size < 10 else f"{seconds / size:.0f} {unit}"


def epoch_text(epoch: float) -> str:
    """`1.6`, `40`: an epoch as given, where steps do not divide it quite (1.601)."""
    return f"{round(epoch, 2):g}"


def shape_text(shape: Iterable[int]) -> str:
    """`64x3x7x7`."""
    return "x".join(map(str, shape))


def counted(count: int, noun: str) -> str:
    """`1 epoch`, `8 epochs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def some(names: Sequence[str], shown: int = 3) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def by_number(key: str) -> list[tuple[bool, int, str]]:
    """A sort key by which layer1.2 comes before layer1.10."""
    parts = re.split(r"([0-9]+)", key)
    return [(True, int(part), "") if part.isdecimal() and len(part) < 20 else (False, 0, part) for part in parts]


def reason(error: BaseException, limit: int = 160) -> str:
    """An error message of other people's code, on one line."""
    return printable(" ".join(str(error).split()) or type(error).__name__, limit)


def command_text(words: Iterable[str]) -> str:
    """A command as a shell takes it, on one line and safe for a terminal, whatever the words hold."""
    return " ".join(shlex.quote(word) if word.isprintable() else _ansi_quoted(word) for word in words)


def _ansi_quoted(word: str) -> str:
    r"""`$'a\x0ab'`: bytes that cannot be shown are written by their numbers, as bash, zsh and ksh read them."""
    return "$'" + "".join(_byte_text(byte) for byte in os.fsencode(word)) + "'"


def _byte_text(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
