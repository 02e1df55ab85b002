"""The script in docs/grid.md runs the grid, goes on where it was stopped, and skips what is done."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

# Stands in for starfire: writes down each call, makes the run's folder, and stops or fails where it is told to.
STANDS_IN = """#!/bin/sh
echo "$*" >> calls
[ "$1" = plot ] && exit 0
name=$(echo "$*" | sed -n 's/.*--name \\([^ ]*\\).*/\\1/p')
if [ -n "$name" ]; then mkdir "$RUNS/$name"; else name=$(echo "$*" | sed 's/.*--resume [^ ]*\\/\\([^ ]*\\) .*/\\1/'); fi
[ "$name" = "$BEFORE_SAVING" ] && exit 130
touch "$RUNS/$name/last.pt"
[ "$name" = "$STOPPED" ] && exit 130
[ "$name" = "$FAILS" ] && exit 1
exit 0
"""


@pytest.fixture
def grid(tmp_path: Path, root: Path) -> Path:
    (script,) = re.findall(r'```sh title="grid.sh"\n(.*?)```', (root / "docs" / "grid.md").read_text(), re.DOTALL)
    (tmp_path / "grid.sh").write_text(script)
    (tmp_path / "bin").mkdir()
    stands_in = tmp_path / "bin" / "starfire"
    stands_in.write_text(STANDS_IN)
    stands_in.chmod(0o755)
    return tmp_path


def run(grid: Path, **variables: str) -> tuple[int, list[str]]:
    """Exit code and the calls it made."""
    (grid / "calls").unlink(missing_ok=True)
    small = {"METHODS": "ck intra:share=0.4", "TARGETS": "0.6", "STARTS": "1 2.5", "SEEDS": "0 1", "RUNS": "r"}
    nothing = dict.fromkeys(("BEFORE_SAVING", "STOPPED", "FAILS"), "")
    path = f"{grid / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **small, **nothing, **variables, "PATH": path}
    shell = shutil.which("dash") or "sh"
    done = subprocess.run([shell, "grid.sh"], cwd=grid, env=environment, capture_output=True, text=True)
    return done.returncode, (grid / "calls").read_text().splitlines()


def test_the_whole_grid_ends_in_table_1_and_figure_4_and_is_not_run_twice(grid: Path) -> None:
    code, calls = run(grid)
    assert code == 0
    trained = [call for call in calls if call.startswith("train")]
    assert len(trained) == 2 * (1 + 2 * 2)
    assert trained[0] == "train --out r --name dense-s0 --quiet --data digits --method dense --seed 0"
    assert trained[2].endswith("--method intra:share=0.4 --target 0.6 --era 1:4 --seed 0")
    assert "--name intra-share-0.4-t0.6-e1-s0 " in trained[2]
    assert any("--era 2.5:5.5" in call for call in trained)
    ends = [call for call in calls if call.startswith("plot")]
    assert ends[0] == "plot r --table 1"
    assert ends[2] == (
        "plot r/dense-s0/ r/dense-s1/ r/ck-t0.6-e1-s0/ r/ck-t0.6-e1-s1/ r/intra-share-0.4-t0.6-e1-s0/ "
        "r/intra-share-0.4-t0.6-e1-s1/ -k convergence,sparsity --out r/figure4.png"
    )
    assert "ck-t0.6-e2.5-s1/ -k convergence" in ends[3]
    assert run(grid) == (0, ends)
    code, calls = run(grid, SEEDS="0 1 2")
    assert sum(call.startswith("train") for call in calls) == 5


@pytest.mark.parametrize(("when", "again"), [("STOPPED", "--resume r/ck-t0.6-e1-s0 "), ("BEFORE_SAVING", "--name ck-")])
def test_a_stop_ends_it_and_the_next_call_goes_on(grid: Path, when: str, again: str) -> None:
    code, calls = run(grid, **{when: "ck-t0.6-e1-s0"})
    assert code == 130
    assert len(calls) == 2
    code, calls = run(grid)
    assert code == 0
    assert again in calls[0]
    assert sum(call.startswith("train") for call in calls) == 9


def test_a_run_that_fails_is_passed_over_and_tried_again(grid: Path) -> None:
    code, calls = run(grid, FAILS="ck-t0.6-e1-s0")
    assert code == 0
    assert sum(call.startswith("train") for call in calls) == 10
    _, calls = run(grid)
    (again,) = [call for call in calls if call.startswith("train")]
    assert again.startswith("train --resume r/ck-t0.6-e1-s0 --quiet --") and again.endswith("--seed 0")
