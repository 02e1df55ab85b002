"""The processors that networks are exported for, by name."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from starfire_cli.errors import unknown
from starfire_cli.sparse import compiler

NATIVE = "native"
X86 = ("x86_64", "amd64")


@dataclass(frozen=True, kw_only=True)
class Level:
    """One set of instructions, for which all loops are compiled.

    Args:
        name: as in `x86-64-v3`.
        cpu: LLVM's name of the processor.
        features: LLVM's features of it, `+neon,...`.
        lanes: floats in a vector.
        sums: vectors that a tile of sums may hold in registers.
        fused: whether a multiplication and an addition are one instruction; else they are rounded one by one.
    """

    name: str
    cpu: str
    features: str = ""
    lanes: int = 4
    sums: int = 14
    fused: bool = True


@dataclass(frozen=True, kw_only=True)
class ExportTarget:
    """A kind of machine.

    Args:
        name: as given to `--target`.
        triple: LLVM's name for it.
        levels: sets of instructions, the best first: the first that the processor has is used.
        pointer: bits of an address.
        linkers: compilers that link a shared library for it, those to be tried first in front.
        abi: LLVM's name for the calling convention, where the triple does not tell.
    """

    name: str
    triple: str
    levels: tuple[Level, ...]
    pointer: int = 64
    linkers: tuple[str, ...] = ()
    abi: str = ""

    @property
    def is_wasm(self) -> bool:
        """Whether a module of WebAssembly is made, and no object file for a linker."""
        return self.triple.startswith("wasm")

    @property
    def runs_here(self) -> bool:
        """Whether this machine can load it."""
        here = platform.machine().lower() in X86 and platform.system() == "Linux"
        return self.name == NATIVE or (here and self.triple.startswith("x86_64"))


_X86 = (
    Level(name="x86-64-v4", cpu="x86-64-v4", lanes=16),
    Level(name="x86-64-v3", cpu="x86-64-v3", lanes=8),
    Level(name="x86-64", cpu="x86-64", lanes=8, fused=False),  # two registers a vector, and the tables of v3
)
_HERE = ("cc", "gcc", "clang")


def _x86(name: str, levels: tuple[Level, ...]) -> ExportTarget:
    linkers = (*_HERE, "x86_64-linux-gnu-gcc") if platform.machine().lower() in X86 else ("x86_64-linux-gnu-gcc",)
    return ExportTarget(name=name, triple="x86_64-unknown-linux-gnu", levels=levels, linkers=linkers)


def _others() -> tuple[ExportTarget, ...]:
    arm = Level(name="armv7", cpu="cortex-a7", features="+neon,+vfp4", sums=7)
    riscv = Level(name="riscv64", cpu="generic-rv64", features="+m,+a,+f,+d,+c", sums=5)
    wasm = Level(name="wasm32", cpu="generic", features="+simd128,+bulk-memory", sums=8, fused=False)
    return (
        ExportTarget(
            name="aarch64",
            triple="aarch64-unknown-linux-gnu",
            levels=(Level(name="aarch64", cpu="generic", features="+neon"),),
            linkers=("aarch64-linux-gnu-gcc",),
        ),
        ExportTarget(
            name="armv7",
            triple="armv7-unknown-linux-gnueabihf",
            levels=(arm,),
            pointer=32,
            linkers=("arm-linux-gnueabihf-gcc",),
        ),
        ExportTarget(
            name="riscv64",
            triple="riscv64-unknown-linux-gnu",
            levels=(riscv,),
            linkers=("riscv64-linux-gnu-gcc",),
            abi="lp64d",
        ),
        ExportTarget(name="wasm32", triple="wasm32-unknown-unknown", levels=(wasm,), pointer=32),
    )


TARGETS = (NATIVE, "x86-64", "x86-64-v3", "x86-64-v4", "aarch64", "armv7", "riscv64", "wasm32")


def find_target(name: str) -> ExportTarget:
    """The target called `name`. Raises BadOption for a name that there is not."""
    if name == NATIVE:
        return _native()
    v4, v3, _ = _X86
    x86 = (_x86("x86-64", _X86), _x86("x86-64-v3", (v3,)), _x86("x86-64-v4", (v4,)))
    for target in (*x86, *_others()):
        if target.name == name:
            return target
    raise unknown("--target", name, TARGETS)


def _native() -> ExportTarget:
    cpu, features = compiler.processor()
    level = Level(name=NATIVE, cpu=cpu, features=features, lanes=compiler.lanes())
    return ExportTarget(name=NATIVE, triple=_llvm().get_default_triple(), levels=(level,), linkers=_HERE)


def _llvm() -> Any:
    import llvmlite.binding as llvm

    return llvm
