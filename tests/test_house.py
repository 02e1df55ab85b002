"""Rules of the house that no linter knows: one public class name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "starfire_cli"


def public_classes(module: Path) -> list[str]:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def test_no_two_public_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module in sorted(PACKAGE.rglob("*.py")):
        for name in public_classes(module):
            homes[name].append(str(module.relative_to(PACKAGE)))
    assert {"Pruner", "TrainRequest", "TrainingPlan"} <= homes.keys(), "the classes are not found"
    shared = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert not shared, f"give each its own name: {shared}"
