"""First sentences of modules, and documentation of registered things."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from starfire_cli.attacks import ATTACKS
from starfire_cli.data.augment import AUGMENTATIONS
from starfire_cli.data.sets import SETS
from starfire_cli.formats.checkpoint.interchange import WRITERS
from starfire_cli.formats.packed.encoding import ENCODINGS
from starfire_cli.models import cifar_resnet, resnet_v1
from starfire_cli.pruning.kernels import KERNELS
from starfire_cli.pruning.methods import METHODS
from starfire_cli.registry import Family
from starfire_cli.report.plot.kinds import KINDS
from starfire_cli.workflows.bench.engines import ENGINES
from starfire_cli.workflows.train.optim import OPTIMIZERS
from starfire_cli.workflows.train.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "starfire_cli"

CLAUSE = re.compile(r"(What|How|Which|Whether|When|Where|Who|Why|Is|Are|Can|May|Do|Does|From what|In which|By which)\b")

MODULES = sorted(PACKAGE.rglob("*.py"))


def _place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_modules_say_what_they_hold() -> None:
    wrong = []
    for path in MODULES:
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        if "?" in summary or CLAUSE.match(summary) or not summary.endswith("."):
            wrong.append(f"{_place(path)}: {summary!r}")
    assert not wrong, "\n".join(wrong)


def test_no_docstring_asks() -> None:
    wrong = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                summary = (ast.get_docstring(node) or "").split("\n\n")[0]
                wrong += [f"{_place(path)}: {node.name}: {summary}"] if summary.endswith("?") else []
    assert not wrong, "\n".join(wrong)


def _names(members: Family[Any] | Sequence[str]) -> Sequence[str]:
    return members.names() if isinstance(members, Family) else members


FAMILIES: dict[str, tuple[str, Family[Any] | Sequence[str]]] = {
    "methods": ("methods.md", METHODS),
    "attacks": ("attack.md", ATTACKS),
    "data sets": ("data.md", SETS),
    "augmentations": ("data.md", AUGMENTATIONS),
    "encodings": ("formats.md", ENCODINGS),
    "kernels": ("performance.md", KERNELS),
    "figures": ("plot.md", tuple(KINDS)),
    "models": ("models.md", (*cifar_resnet.names(), *resnet_v1.names(), "timm:NAME", "package.module:callable")),
    "recipes": ("train.md", tuple(RECIPES)),
    "optimizers": ("train.md", OPTIMIZERS),
    "engines": ("bench.md", tuple(engine.name for engine in ENGINES)),
    "exports": ("compress.md", ("onnx", *WRITERS)),
}
REGISTERED = [(page, name) for page, members in FAMILIES.values() for name in _names(members)]


@pytest.mark.parametrize(("page", "name"), REGISTERED)
def test_a_registered_thing_is_documented_on_its_page(page: str, name: str) -> None:
    """As code (`name`, `name:option=1`) or, for methods, in bold; prose that merely has the word does not count."""
    text = ROOT.joinpath("docs", page).read_text(encoding="utf-8")
    called = re.escape(name)
    assert re.search(rf"`(?:--\w+ )?{called}[`:, ]|\*\*(?:fc )?{called}\*\*", text), (
        f"docs/{page} does not mention {name}"
    )


def test_every_family_is_among_them() -> None:
    families = {members.package for _, members in FAMILIES.values() if isinstance(members, Family)}
    made = set()
    for path in PACKAGE.rglob("*.py"):
        made |= set(
            re.findall(r'^\w+\b.* = Family\("[^"]+", "([\w.]+)"\)', path.read_text(encoding="utf-8"), re.MULTILINE)
        )
    assert made == families
