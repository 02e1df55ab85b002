"""Imports run down only, never in a circle, siblings do not know each other, and `--help` loads nothing heavy."""

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
    {"cli", "integrations"},
    {"commands", "api"},
    {"workflows"},
    {"report", "networks"},
    {"records"},  # plain values that workflows make and reports show
    {"formats", "sparse", "distributed"},
    {"models", "data", "attacks", "pruning"},
    {"heap", "own_code", "registry", "runtime"},
    {"damage", "options"},
    {"labels", "markup", "numbers", "text"},
    {"errors", "output", "version"},
]
FLOOR = {part: height for height, parts in enumerate(reversed(FLOORS)) for part in parts}

# Inside of workflows/ the folders of the commands do not know each other, nor do the modules beside them, which they
# share, know any folder. These do all the same, as (who, whom):
CROSSINGS = {
    ("compare", "train"),  # trains, and takes train's options
    ("compare", "attack"),  # measures what it has trained by the other commands
    ("compare", "bench"),
    ("compare", "compress"),
    ("attach", "train"),  # a call's method and target become methods as in training
    ("plot", "inspect"),  # draws what `inspect` finds in a checkpoint
    ("prune", "inspect"),  # shows what `inspect` finds in what it wrote
    ("prune", "train"),  # a request's method and target become methods as in training
    ("pruning", "train"),  # likewise
    ("init_defaults", "train"),  # fills a training request from a checkpoint's record
}

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
            assert part in ("api", "version"), "the package itself offers what api/ holds, and loads nothing else"
    assert not breaches, "\n".join(breaches)


def test_the_core_knows_torch_and_what_is_below_it() -> None:
    """Beside the standard library: numpy and what makes the masks fast."""
    allowed = {"torch", "numpy", "numba", "triton", "starfire_cli", *sys.stdlib_module_names}
    for module in PACKAGE.joinpath("pruning").rglob("*.py"):
        strangers = {name.partition(".")[0] for _, name in imports(module)} - allowed
        assert not strangers, f"{module.name} imports {strangers}"


def needs(module: Path) -> set[str]:
    """The modules that `module` imports, in functions and for types too, and the packages that are loaded on the way.

    A package that holds `module` is loaded before it in any case, so it counts only where it is imported by its name.
    """
    own = name_of(module)
    found = {name for _, name in imports(module)} & NAMES
    on_the_way = {".".join(name.split(".")[:depth]) for name in found for depth in range(1, name.count(".") + 1)}
    return found | {package for package in on_the_way if not f"{own}.".startswith(f"{package}.")}


def test_there_are_no_circles() -> None:
    graph = {name_of(module): needs(module) for module in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle in it


def test_imports_inside_functions_are_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "from typing import TYPE_CHECKING\nfrom starfire_cli import runtime\n"
        "if TYPE_CHECKING:\n    from starfire_cli.errors import BadOption\n"
        "def f():\n    from starfire_cli.formats.run import Run\n    return lambda: __import__('os')\n"
    )
    everywhere = [(2, "starfire_cli.runtime"), (4, "starfire_cli.errors"), (6, "starfire_cli.formats.run")]
    assert [x for x in sorted(imports(module)) if x[1] != "typing"] == everywhere
    assert [x for x in imports(module, only_when_loaded=True) if x[1] != "typing"] == everywhere[:1]


def test_folders_of_workflows_do_not_know_each_other() -> None:
    workflows = PACKAGE / "workflows"
    folders = {folder.name for folder in workflows.iterdir() if folder.joinpath("__init__.py").exists()}
    breaches = {}
    for module in workflows.rglob("*.py"):
        own = name_of(module).split(".")[2:3]
        for line, name in imports(module):
            other = name.split(".")[2:3] if name.startswith("starfire_cli.workflows.") else []
            if own and other != own and folders.intersection(other):
                breaches[f"{module.relative_to(PACKAGE.parent)}:{line}: imports {name}"] = (own[0], other[0])
    new = [text for text, crossing in breaches.items() if crossing not in CROSSINGS]
    assert not new, "\n".join(new)
    mended = CROSSINGS - set(breaches.values())
    assert not mended, f"mended, so take them out of CROSSINGS: {sorted(mended)}"


@pytest.mark.parametrize("part", ["cli", "commands", "options", "numbers", "registry", "errors", "runtime", "api", ""])
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
