"""First sentences of docstrings, and documentation of registered things."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
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
from starfire_cli.workflows.train.optimizers import OPTIMIZERS
from starfire_cli.workflows.train.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "starfire_cli"

CLAUSE = re.compile(
    r"(?:What|How|Which|Whether|When|Where|Who|Whom|Whose|Why|Is|Are|Can|May|Do|Does"
    r"|(?:As|At|Below|By|For|From|In|Of|On|Since|To|Until|With) (?:what|how|which|when|where|whom|whose))\b"
)

SECTIONS = ("Args:", "Returns:", "Yields:", "Attributes:")

MODULES = sorted(PACKAGE.rglob("*.py"))

DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Node = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Assign | ast.AnnAssign


def _place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_sentence(summary: str, *, predicate: bool = False) -> bool:
    clause = CLAUSE.match(summary) and not (predicate and summary.startswith("Whether"))
    return "?" not in summary and not clause and summary.endswith(".") and not summary.startswith(SECTIONS)


def _docstrings(tree: ast.Module) -> Iterator[tuple[Node, str, str]]:
    """(node, name, docstring) of functions and classes at any depth, and of variables with a string below them."""
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and (text := ast.get_docstring(node)):
            yield node, node.name, text
        if isinstance(node, ast.Module | ast.ClassDef):
            for variable, below in pairwise(node.body):
                match variable, below:
                    case ast.Assign() | ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(text))):
                        yield variable, ast.unparse(variable).partition("=")[0].strip(), text


def _may_be_predicate(node: Node) -> bool:
    """Functions and variables of type bool, or of a type that is not written down, as with numba and triton."""
    match node:
        case ast.ClassDef():
            return False
        case ast.FunctionDef(returns=kind) | ast.AsyncFunctionDef(returns=kind) | ast.AnnAssign(annotation=kind):
            return kind is None or ast.unparse(kind) == "bool"
    return True


def _faults(tree: ast.Module) -> list[str]:
    """Docstrings whose first paragraph opens with a clause, asks, or has no full stop; predicates may say "Whether"."""
    summaries = [(node, name, text.split("\n\n")[0].strip()) for node, name, text in _docstrings(tree)]
    return [f"{name}: {x}" for node, name, x in summaries if not _is_sentence(x, predicate=_may_be_predicate(node))]


def test_modules_say_what_they_hold() -> None:
    wrong = []
    for path in MODULES:
        summary = (ast.get_docstring(_tree(path)) or "").split("\n\n")[0]
        wrong += [] if _is_sentence(summary) else [f"{_place(path)}: {summary!r}"]
    assert not wrong, "\n".join(wrong)


def test_docstrings_open_with_a_noun_or_a_verb() -> None:
    wrong = [f"{_place(path)}: {fault}" for path in MODULES for fault in _faults(_tree(path))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "sound"),
    [
        ('def f():\n    """What it is."""', False),
        ('def f():\n    """From what it comes."""', False),
        ('def f():\n    """The first?"""', False),
        ('def f():\n    """The first"""', False),
        ('class A:\n    """Args:\n    x: the first.\n    """', False),
        ('def f() -> int:\n    """Whether it is."""', False),
        ('class A:\n    """Whether it is."""', False),
        ('class A:\n    x: int = 1\n    """How many there are."""', False),
        ('def f():\n    def g():\n        """Which it is."""', False),
        ('def f() -> bool:\n    """Whether it is."""', True),
        ('def f():\n    """From now on, the first."""', True),
        ('def f():\n    """Whole kernels."""', True),
        ('x = 1\n"""The number of all."""', True),
    ],
)
def test_clauses_are_found_wherever_they_open_a_docstring(code: str, sound: bool) -> None:
    assert (not _faults(ast.parse(code))) == sound


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
