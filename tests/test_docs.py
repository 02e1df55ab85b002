"""The documentation is true: its examples are run, its worked method is added, its links lead somewhere."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.joinpath("docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_give_what_they_show(page: Path) -> None:
    result = doctest.testfile(str(page), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 0 or ">>>" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.fixture(scope="module")
def with_the_worked_method(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the method from docs/contributing.md in its one file."""
    text = ROOT.joinpath("docs", "contributing.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'```python title="filter.py"\n(.*?)```', text, re.DOTALL)
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("starfire_cli", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    copy.joinpath("starfire_cli", "pruning", "methods", "filter.py").write_text(code, encoding="utf-8")
    return copy


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_worked_method_is_one_file(with_the_worked_method: Path) -> None:
    assert "filter" in run(with_the_worked_method, "-c", "import starfire_cli.cli as c; c.main(['train', '--help'])")
    code = (
        "import torch\n"
        "from starfire_cli.pruning import CONV_METHODS, Goal, Layer, apply_cuts\n"
        "method = CONV_METHODS.build('filter:euclidean=true')\n"
        "weight = torch.tensor([3.0, 1.0, 4.0, 2.0]).reshape(4, 1, 1, 1).expand(4, 2, 3, 3)\n"
        "layer = Layer(name='x', key='x', kind='window', shape=(4, 2, 3, 3))\n"
        "mask = apply_cuts(weight, weight != 0, method.budget(layer, Goal(target=0.5)))\n"
        "print(CONV_METHODS.spec(method), mask.flatten(1).all(1).int().tolist(), int(mask.sum()))\n"
    )
    assert run(with_the_worked_method, "-c", code) == "filter:euclidean=true [1, 0, 1, 0] 36\n"


@pytest.mark.slow
def test_the_worked_method_passes_what_every_method_must(with_the_worked_method: Path) -> None:
    arguments = [
        "-m",
        "pytest",
        "-q",
        "-k",
        "filter",
        "tests/pruning/methods/test_methods.py",
        "tests/pruning/test_pruner.py",
    ]
    out = run(with_the_worked_method, *arguments, "-p", "no:cacheprovider")
    assert int(re.findall(r"(\d+) passed", out)[0]) >= 20
