"""A run folder gives back what was put in, torn lines and all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.run import Run, find_checkpoint, newest_run


def test_create_finds_a_free_name(tmp_path: Path) -> None:
    names = [Run.create(tmp_path / "runs", None, "resnet20-digits").path.name for _ in range(3)]
    assert names == ["resnet20-digits", "resnet20-digits-2", "resnet20-digits-3"]
    assert Run.create(tmp_path / "runs", "mine", "x").path == tmp_path / "runs" / "mine"
    with pytest.raises(BadOption, match="exists already"):
        Run.create(tmp_path / "runs", "mine", "x")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b"])
def test_create_refuses_what_is_no_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadOption, match="is not the name of a folder"):
        Run.create(tmp_path, name, "x")
    assert list(tmp_path.iterdir()) == []


def test_create_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StarfireError, match="cannot make the run folder"):
        Run.create(tmp_path / "runs", None, "x")


def test_config(tmp_path: Path) -> None:
    run = Run.create(tmp_path, None, "x")
    run.write_config({"format": "starfire-run", "path": Path("a/b"), "era": (0, 10), "loss": math.inf})
    assert run.read_config() == {"format": "starfire-run", "path": "a/b", "era": [0, 10], "loss": None}
    json.loads(run.config_path.read_text())
    for damaged in ("{", "[1]", "\xff"):
        run.config_path.write_text(damaged, encoding="latin-1")
        with pytest.raises(StarfireError, match=r"config\.json"):
            run.read_config()
    with pytest.raises(StarfireError, match="not a run folder"):
        Run(tmp_path).read_config()


@given(rows=st.integers(1, 5), cut=st.integers(0, 200))
def test_a_torn_last_line_is_dropped_and_written_over(
    tmp_path_factory: pytest.TempPathFactory, rows: int, cut: int
) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    written = [{"epoch": n, "note": "ä" * 3, "loss": 0.1} for n in range(1, rows + 1)]
    for row in written:
        run.append_metrics(row)
    whole = run.metrics_path.read_bytes()
    torn = whole[: max(0, len(whole) - cut)]
    run.metrics_path.write_bytes(torn)
    kept = written[: torn.count(b"\n") + torn.endswith(b"}")]  # whole, but for its newline
    assert run.read_metrics() == kept
    run.append_metrics({"epoch": 99})
    assert run.read_metrics() == [*kept, {"epoch": 99}]


def test_what_editors_leave_does_no_harm(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_text('{"epoch": 1}\r\n\n{"epoch": 2}\n\n \n')
    assert run.read_metrics() == [{"epoch": 1}, {"epoch": 2}]


def test_the_newest_run_may_lie_in_a_folder_of_runs(tmp_path: Path) -> None:
    made = []
    for number, name in enumerate(("runs/a", "runs/grid/b")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "config.json", (number, number))
        made.append(tmp_path / name)
    assert newest_run(tmp_path / "runs").path == made[1]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.read_metrics() == []
    run.metrics_path.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(StarfireError, match=r"metrics\.jsonl is damaged: line 2: "):
        run.read_metrics()


def test_nan_becomes_null(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append_metrics({"epoch": 1, "val_loss": math.nan})
    assert run.read_metrics() == [{"epoch": 1, "val_loss": None}]
    assert "NaN" not in run.metrics_path.read_text()


def test_truncate_for_resume(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for epoch in range(1, 6):
        run.append_metrics({"epoch": epoch})
    run.truncate_metrics(3)
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2, 3]
    run.append_metrics({"epoch": 4})
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2, 3, 4]


def make_run(root: Path, name: str, age: float) -> Run:
    run = Run.create(root, name, "x")
    run.write_config({})
    os.utime(run.config_path, (1e9 - age, 1e9 - age))
    return run


def test_find_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StarfireError, match="there are no runs"):
        find_checkpoint(None, tmp_path)
    old, new = make_run(tmp_path, "old", 100), make_run(tmp_path, "new", 0)
    assert newest_run(tmp_path).path == new.path
    with pytest.raises(StarfireError, match=r"without best\.pt or last\.pt"):
        find_checkpoint(None, tmp_path)
    new.last.write_text("")
    assert find_checkpoint(None, tmp_path) == new.last
    new.best.write_text("")
    assert find_checkpoint(None, tmp_path) == new.best == find_checkpoint(new.path)
    assert find_checkpoint(new.last) == new.last
    old.last.write_text("")  # written to later than the other
    os.utime(old.last, (4e9, 4e9))
    assert find_checkpoint(None, tmp_path) == old.last
    with pytest.raises(StarfireError, match="there is no file or run folder"):
        find_checkpoint(tmp_path / "missing")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model.safetensors").write_text("")
    assert find_checkpoint(tmp_path / "hub") == tmp_path / "hub" / "model.safetensors"
