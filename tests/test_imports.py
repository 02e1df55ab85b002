"""Imports run down only, siblings do not know each other, and `starfire --help` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "starfire_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the top down; what stands on one line does not know its neighbours.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"commands", "api"},
    {"workflows"},
    {"report", "networks"},
    {"records"},  # plain values that workflows make and reports show
    {"formats", "sparse", "distributed"},
    {"models", "data", "attacks", "pruning"},
    {"registry", "runtime"},
    {"damage", "options"},
    {"labels", "text", "values"},
    {"errors", "output"},
]
FLOOR = {part: height for height, parts in enumerate(reversed(FLOORS)) for part in parts}

HEAVY = {"torch", "torchvision", "matplotlib", "sklearn", "timm", "numpy", "scipy", "onnx", "numba", "PIL"}


def name_of(module: Path) -> str:
    parts = ["starfire_cli", *module.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(name: str) -> str:
    """`starfire_cli.pruning.methods.ck` is part of `pruning`; the package's own `__init__` of nothing."""
    return name.split(".")[1] if "." in name else ""


NAMES = {name_of(module) for module in MODULES}


def imports(module: Path, *, only_when_loaded: bool = False) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; or of those that run when the module is loaded."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    if only_when_loaded:
        for node in ast.walk(tree):
            for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                skipped |= {id(inner) for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            base = node.module or ""
            inner = [f"{base}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name if name in NAMES else base) for name in inner]
    return found


def test_every_part_has_a_floor() -> None:
    parts = {part_of(name) for name in NAMES} - {""}
    assert parts <= FLOOR.keys(), f"say in FLOORS where these stand: {sorted(parts - FLOOR.keys())}"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: name_of(m).removeprefix("starfire_cli."))
def test_imports_run_down_and_siblings_do_not_know_each_other(module: Path) -> None:
    own = part_of(name_of(module))
    breaches = []
    for line, name in imports(module):
        part = part_of(name)
        if name.partition(".")[0] != "starfire_cli" or not part or part == own:
            continue
        if own and FLOOR.get(part, 99) >= FLOOR.get(own, -1):
            breaches.append(f"{module.relative_to(PACKAGE.parent)}:{line}: {own} imports {name}")
        if not own:
            assert part == "api", "the package itself offers what api.py holds, and loads nothing else"
    assert not breaches, "\n".join(breaches)


def test_the_core_knows_torch_and_what_is_below_it() -> None:
    """Beside the standard library: numpy and what makes the masks fast."""
    allowed = {"torch", "numpy", "numba", "triton", "starfire_cli", *sys.stdlib_module_names}
    for module in PACKAGE.joinpath("pruning").rglob("*.py"):
        strangers = {name.partition(".")[0] for _, name in imports(module)} - allowed
        assert not strangers, f"{module.name} imports {strangers}"


def test_there_are_no_cycles() -> None:
    graph = {name_of(m): {n for _, n in imports(m, only_when_loaded=True) if n in NAMES} for m in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the cycle in it


@pytest.mark.parametrize("part", ["cli", "commands", "options", "values", "registry", "errors", "runtime", "api", ""])
def test_what_help_needs_imports_nothing_heavy_when_loaded(part: str) -> None:
    for module in (m for m in MODULES if part_of(name_of(m)) == part):
        heavy = {name.partition(".")[0] for _, name in imports(module, only_when_loaded=True)} & HEAVY
        assert not heavy, f"{module.relative_to(PACKAGE.parent)} imports {heavy} when loaded"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["nonsense"]])
def test_the_command_line_answers_without_loading_anything_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from starfire_cli.cli import main; main(sys.argv[1:]);"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")
