"""The choice among sets of instructions when a network is created: `@level`, in LLVM's assembly."""

from __future__ import annotations

import platform
from typing import NamedTuple

from starfire_cli.errors import StarfireError
from starfire_cli.sparse.export.targets import X86, ExportTarget, Level


class _Register(NamedTuple):
    """Bits that must be set in a register of the instruction CPUID: Intel's manual, volume 2A."""

    leaf: int
    name: str
    bits: int


def _bits(*places: int) -> int:
    return sum(1 << place for place in places)


_V3 = (  # SSE3 to 4.2, FMA, MOVBE, POPCNT, OSXSAVE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT
    _Register(1, "cx", _bits(0, 9, 12, 13, 19, 20, 22, 23, 27, 28, 29)),
    _Register(7, "bx", _bits(3, 5, 8)),
    _Register(0x80000001, "cx", _bits(0, 5)),
)
_V4 = (*_V3, _Register(7, "bx", _bits(16, 17, 28, 30, 31)))  # AVX-512 F, DQ, CD, BW, VL
_SAVED = {8: 0x06, 16: 0xE6}  # registers that the system must save: those of AVX, those of AVX-512


def choosing(target: ExportTarget) -> str:
    """`i32 @level()`: the number of the first level of `target` that the processor has; -1 for none.

    Raises StarfireError where this machine cannot write it.
    """
    if not target.triple.startswith("x86_64"):
        return "define internal i32 @level() nounwind {\n  ret i32 0\n}\n"
    if platform.machine().lower() not in X86:
        raise StarfireError(
            f"--target {target.name} can be written on x86-64 machines only, and this one is {platform.machine()}"
        )
    lines = ["define internal i32 @level() nounwind {", "entry:", "  br label %try0"]
    for number, level in enumerate(target.levels):
        lines += [f"try{number}:", *_checked(number, level), f"is{number}:", f"  ret i32 {number}"]
    lines += [f"try{len(target.levels)}:", "  ret i32 -1", "}"]
    return "\n".join(lines) + "\n"


def _checked(number: int, level: Level) -> list[str]:
    """Go to `is` where the processor has the level, else to the next one."""
    after, lines = f"try{number + 1}", []
    needed = {8: _V3, 16: _V4}.get(level.lanes)
    if needed is None or level.cpu == "x86-64":
        return [f"  br label %is{number}"]
    for i, (leaf, name, bits) in enumerate(needed):
        at = f"{number}.{i}"
        most = leaf & 0x80000000
        lines += [
            *_cpuid(f"m{at}", most, "ax"),
            f"  %w{at} = icmp uge i32 %m{at}, {leaf}",
            f"  br i1 %w{at}, label %has{at}, label %{after}",
            f"has{at}:",
            *_cpuid(f"r{at}", leaf, name),
            f"  %b{at} = and i32 %r{at}, {bits}",
            f"  %c{at} = icmp eq i32 %b{at}, {bits}",
            f"  br i1 %c{at}, label %ok{at}, label %{after}",
            f"ok{at}:",
        ]
    saved = _SAVED[level.lanes]
    return [
        *lines,
        f'  %x{number} = call {{ i32, i32 }} asm sideeffect "xgetbv", "={{ax}},={{dx}},{{cx}}"(i32 0)',
        f"  %l{number} = extractvalue {{ i32, i32 }} %x{number}, 0",
        f"  %s{number} = and i32 %l{number}, {saved}",
        f"  %t{number} = icmp eq i32 %s{number}, {saved}",
        f"  br i1 %t{number}, label %is{number}, label %{after}",
    ]


def _cpuid(result: str, leaf: int, register: str) -> list[str]:
    kind = "{ i32, i32, i32, i32 }"
    asm = '"cpuid", "={ax},={bx},={cx},={dx},{ax},{cx}"'
    return [
        f"  %a{result} = call {kind} asm {asm}(i32 {leaf}, i32 0)",
        f"  %{result} = extractvalue {kind} %a{result}, {('ax', 'bx', 'cx', 'dx').index(register)}",
    ]
