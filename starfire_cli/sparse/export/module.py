"""One object file of a network: its loops for every level, its tables and its functions, compiled by LLVM."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from starfire_cli.errors import StarfireError
from starfire_cli.sparse import compiler
from starfire_cli.sparse.export.driver import Interface, driver, run_alone
from starfire_cli.sparse.export.levels import choosing
from starfire_cli.sparse.export.program import LevelProgram
from starfire_cli.sparse.export.tables import Tables
from starfire_cli.sparse.export.targets import ExportTarget, Level
from starfire_cli.sparse.export.threading import run_in_threads

VERSION = 1  # of the functions
THREADS = 64  # at most, where there are any
_LARGEST = (1 << 31) - (64 << 20)  # bytes of tables that the code can reach
_ADDRESS = """@tables = external hidden constant i8, align 64
define internal ptr @address(i64 %at) alwaysinline nounwind {
  %there = getelementptr i8, ptr @tables, i64 %at
  ret ptr %there
}
"""
_LOOP = "ptr %passing, ptr %kept, ptr %image"


@dataclass(frozen=True, kw_only=True)
class Description:
    """Facts about a network, as it tells them itself.

    Args:
        name: an identifier of C.
        image: (C, H, W).
        outputs: numbers for each image.
        mean: with which it normalises pixels.
        std: likewise.
        digest: of its masks, in hexadecimal.
    """

    name: str
    image: tuple[int, int, int]
    outputs: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str

    def packed(self, threads: int) -> bytes:
        """`NAME_description` of the header."""
        numbers = struct.pack("<6i", VERSION, *self.image, self.outputs, threads)
        return numbers + struct.pack("<6f", *self.mean, *self.std) + self.digest.encode("ascii")[:64].ljust(72, b"\0")


@dataclass(frozen=True, kw_only=True)
class ObjectFile:
    """A compiled network.

    Args:
        code: the object file.
        tables: bytes of weights, offsets and arguments in it.
        memory: bytes that one thread needs.
    """

    code: bytes
    tables: int
    memory: int


def compiled(
    identity: Description, target: ExportTarget, programs: Sequence[LevelProgram], *, threads: bool
) -> ObjectFile:
    """Compile a network.

    Args:
        identity: of the network.
        target: where it is going to run.
        programs: for each of the target's levels.
        threads: whether several threads may run it.

    Raises StarfireError: it is too large for what the target can address.
    """
    tables = Tables()
    calls = [[tables.arguments(step) for step in program.steps] for program in programs]
    rows = [
        tables.add(np.array([(s, 0, step.tasks, step.grain) for s, step in enumerate(program.steps)], np.int64))
        for program in programs
    ]
    if tables.size > _LARGEST:
        raise StarfireError(f"the live weights take {tables.size >> 20} MiB; an export holds {_LARGEST >> 20} at most")
    interface = Interface(
        name=identity.name,
        image=identity.image,
        outputs=identity.outputs,
        memory=max(program.memory for program in programs),
        levels=len(programs),
        threads=THREADS if threads else 1,
        steps=max(len(program.steps) for program in programs),
    )
    declarations: set[str] = set()
    parts = [_ADDRESS]
    for number, (program, found) in enumerate(zip(programs, calls, strict=True)):
        names = _functions(number, program, target, parts, declarations)
        parts.append(_image(number, program, names, found))
        if threads:
            parts.append(_steps(number, names, found))
    run = run_alone(interface)
    if threads:
        run = run_alone(interface, "run_in_turn") + run_in_threads(
            interface, target, [(row, len(program.steps)) for row, program in zip(rows, programs, strict=True)]
        )
        declarations.add("declare void @llvm.memset.p0.i32(ptr, i8, i32, i1)")
    exported = 'nounwind "wasm-export-name"="{name}"' if target.is_wasm else "nounwind"
    functions = driver(interface, target, exported=exported, run=run)
    declarations |= {line for line in functions.splitlines() if line.startswith("declare ")}
    functions = "\n".join(line for line in functions.splitlines() if not line.startswith("declare "))
    about = _about(identity, interface.threads, exported)
    text = "\n".join([*sorted(declarations), *parts, choosing(target), about, functions])
    code = tables.filled(_object(text, tables.placeholder("tables"), target))
    return ObjectFile(code=code, tables=tables.size, memory=interface.maps)


def _functions(
    number: int, program: LevelProgram, target: ExportTarget, parts: list[str], declarations: set[str]
) -> list[str]:
    """The names of the loops of a program's steps; their texts are added, each once."""
    attributes = f"nounwind noinline {_attributes(program.level, target)}"
    known: dict[str, str] = {}
    names = []
    for step in program.steps:
        text = step.code.function("loop", attributes)
        if text not in known:
            known[text] = f"loop_{number}_{len(known)}"
            own = step.code.function(known[text], attributes).replace("define void", "define internal void", 1)
            parts.append(_rounding(own, program.level))
            declarations |= {_rounding(line, program.level) for line in step.code.declarations}
        names.append(known[text])
    return names


def _rounding(text: str, level: Level) -> str:
    return text if level.fused else text.replace("@llvm.fma.", "@llvm.fmuladd.")


def _attributes(level: Level, target: ExportTarget) -> str:
    if len(target.levels) == 1:
        return ""  # the whole module is for it
    return f'"target-cpu"="{level.cpu}"'


def _image(number: int, program: LevelProgram, names: Sequence[str], arguments: Sequence[int]) -> str:
    """`image_L`: one image, by one thread."""
    lines = [f"define internal void @image_{number}({_LOOP}) noinline nounwind {{"]
    for i, (name, at, step) in enumerate(zip(names, arguments, program.steps, strict=True)):
        lines.append(f"  %a{i} = getelementptr i8, ptr @tables, i64 {at}")
        lines.append(f"  call void @{name}(ptr %a{i}, {_LOOP}, i64 0, i64 {step.tasks})")
    return "\n".join([*lines, "  ret void", "}", ""])


def _steps(number: int, names: Sequence[str], arguments: Sequence[int]) -> str:
    """`step_L`: some tasks of one step."""
    cases = " ".join(f"i64 {i}, label %s{i}" for i in range(len(names)))
    lines = [f"define internal void @step_{number}(i64 %step, {_LOOP}, i64 %begin, i64 %end) noinline nounwind {{"]
    lines += [f"  switch i64 %step, label %done [ {cases} ]"]
    for i, (name, at) in enumerate(zip(names, arguments, strict=True)):
        lines += [
            f"s{i}:",
            f"  %a{i} = getelementptr i8, ptr @tables, i64 {at}",
            f"  call void @{name}(ptr %a{i}, {_LOOP}, i64 %begin, i64 %end)",
            "  br label %done",
        ]
    return "\n".join([*lines, "done:", "  ret void", "}", ""])


def _about(identity: Description, threads: int, exported: str) -> str:
    data = "".join(f"\\{byte:02X}" for byte in identity.packed(threads))
    size = len(identity.packed(threads))
    function = f"{identity.name}_info"
    return f"""
@about = internal constant [{size} x i8] c"{data}", align 8
define ptr @{function}() {exported.format(name=function)} {{
  ret ptr @about
}}
"""


def _object(text: str, data: str, target: ExportTarget) -> bytes:
    import llvmlite.binding as llvm

    with compiler.COMPILING:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        llvm.initialize_native_asmparser()
        base = target.levels[-1]
        try:
            kind = llvm.Target.from_triple(target.triple)
        except RuntimeError as error:
            raise StarfireError(f"--target {target.name}: this llvmlite knows no {target.triple} ({error})") from None
        machine = kind.create_target_machine(
            cpu=base.cpu,
            features=base.features,
            opt=3,
            reloc="static" if target.is_wasm else "pic",
            codemodel="default",
            **({"abiname": target.abi} if target.abi else {}),
        )
        module = llvm.parse_assembly(text)
        module.verify()
        compiler.optimise(module, machine)
        module.link_in(llvm.parse_assembly(data))
        module.get_global_variable("tables").linkage = "internal"  # a program may have several networks
        found: bytes = machine.emit_object(module)
    return found
