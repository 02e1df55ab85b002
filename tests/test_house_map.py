"""The map in docs/architecture.md names modules that exist, and all of those in the folders that it has tables of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "starfire_cli"
PAGE = ROOT.joinpath("docs", "architecture.md").read_text(encoding="utf-8")
NAMED = r"`([\w/]+(?:\.py|/))`"
TABLE = re.compile(r"^\| module in `([\w/]+)/` \|.*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
TABLES = TABLE.findall(PAGE)


def _parts(folder: Path) -> set[str]:
    """Modules and packages of a folder, but for its private ones."""
    inside = {x.name if x.suffix else f"{x.name}/" for x in folder.iterdir() if x.suffix == ".py" or x.is_dir()}
    return {name for name in inside if not name.startswith("_")}


@pytest.mark.parametrize(("folder", "rows"), TABLES, ids=[folder for folder, _ in TABLES])
def test_a_table_names_every_module_of_its_folder(folder: str, rows: str) -> None:
    named = {name for row in rows.splitlines() for name in re.findall(NAMED, row.split("|")[1])}
    assert named == _parts(PACKAGE / folder)


def test_the_tables_are_found() -> None:
    assert {"pruning", "sparse", "sparse/export", "sparse/training"} <= {folder for folder, _ in TABLES}


def test_every_module_on_the_page_exists() -> None:
    modules = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")]
    missing = [x for x in re.findall(r"`([\w/]+\.py)`", PAGE) if not any(f"/{m}".endswith(f"/{x}") for m in modules)]
    missing = [name for name in missing if not (ROOT / name).exists()]
    assert not missing, f"docs/architecture.md names modules that are not there: {missing}"
