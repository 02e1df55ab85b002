"""Compiles loops to machine code for the processor at hand by llvmlite (it comes with numba, the extra `fast`)."""

from __future__ import annotations

import os
from functools import cache, lru_cache
from threading import Lock
from typing import Any

from starfire_cli.errors import StarfireError

COMPILING = Lock()  # LLVM's contexts are not made for two threads


def missing() -> str | None:
    """The reason why nothing can be compiled here; None where it can. llvmlite is not imported to find out."""
    import importlib.util

    if importlib.util.find_spec("llvmlite") is not None:
        return None
    return 'llvmlite is not installed (pip install "starfire-cli[fast]" brings it)'


@lru_cache(maxsize=1)
def processor() -> tuple[str, str]:
    """The target processor's name and features: this one's, or those of STARFIRE_CPU (`x86-64-v3`)."""
    llvm = _llvm()
    asked = os.environ.get("STARFIRE_CPU", "")
    if asked:
        return asked, ""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


@lru_cache(maxsize=1)
def lanes() -> int:
    """The number of floats in a vector register."""
    import platform

    name, features = processor()
    wide = {"x86-64-v4": 16, "x86-64-v3": 8}.get(name, 0)
    has = features.split(",")
    if wide or platform.machine().lower() not in ("x86_64", "amd64"):
        return wide or 4
    return 16 if "+avx512f" in has else 8 if {"+avx2", "+fma"} <= set(has) else 4


_engines: list[Any] = []  # what was compiled stays for as long as the process


@cache
def compiled(text: str, *, quickly: bool = False) -> int:
    """The address of the function `f` in the assembly `text`, compiled for this processor.

    Args:
        text: assembly.
        quickly: with few passes, in half the time; enough for loops that are as they should run already.
    """
    with COMPILING:
        llvm = _llvm()
        name = f"f{len(_engines)}" if quickly else "f"
        module = llvm.parse_assembly(text.replace("@f(", f"@{name}(", 1) if quickly else text)
        module.verify()
        machine = _shared_machine() if quickly else _machine()
        optimise(module, machine, quickly=quickly)
        if quickly:  # of many functions only the machine code is kept
            engine = _shared_engine()
            engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(machine.emit_object(module)))
        else:
            engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        _engines.append((engine, machine))
        return int(engine.get_function_address(name))


def _machine() -> Any:
    cpu, features = processor()
    return _llvm().Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3, jit=True)


@lru_cache(maxsize=1)
def _shared_machine() -> Any:
    """The machine that writes the code of many functions."""
    return _machine()


@lru_cache(maxsize=1)
def _shared_engine() -> Any:
    """The engine that holds the code of many functions."""
    return _llvm().create_mcjit_compiler(_llvm().parse_assembly(""), _machine())


def _few_passes(llvm: Any) -> Any:
    """The passes that put variables into registers and tidy up; None where llvmlite does not let passes be chosen."""
    if not hasattr(llvm, "create_new_module_pass_manager"):
        return None
    manager = llvm.create_new_module_pass_manager()
    for name in ("sroa", "loop_rotate", "instruction_combine", "simplify_cfg", "dead_code_elimination"):
        if not hasattr(manager, f"add_{name}_pass"):
            return None
        getattr(manager, f"add_{name}_pass")()
    return manager


def optimise(module: Any, machine: Any, *, quickly: bool = False) -> None:
    """Run LLVM's passes over a module for a target machine, or but a few; loops stay as they are written."""
    llvm = _llvm()
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False
    options.slp_vectorization = options.loop_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    manager = _few_passes(llvm) if quickly else None
    (manager or passes.getModulePassManager()).run(module, passes)


@lru_cache(maxsize=1)
def _llvm() -> Any:
    import llvmlite.binding as llvm

    if tuple(int(n) for n in llvm.llvm_version_info[:1]) < (15,):
        raise StarfireError(f"llvmlite is too old (LLVM {llvm.llvm_version_info[0]}); pip install -U numba")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm
