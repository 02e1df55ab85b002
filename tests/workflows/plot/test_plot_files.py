"""Runs and results are found and read in whatever state they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.errors import StarfireError
from starfire_cli.workflows.plot.run import gather
from starfire_cli.workflows.plot.run_files import read_curves, read_run, read_sizes
from tests.helpers.plot_runs import config_of, rows_of, write_attack, write_run


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = config_of("window:max_nonzero=2", 0.7, start=3.0, end=5.5, seed=7)
    run = read_run(write_run(tmp_path / "r", config))
    assert (run.method, run.fc, run.target, run.era) == ("window:max_nonzero=2", "fine", 0.7, (3.0, 5.5))
    assert (run.model, run.data, run.epochs, run.seed, run.lr_drops) == ("resnet20", "digits", 10, 7, (5.0, 8.0))
    assert run.column("val_top1") == [row["val_top1"] for row in rows_of(config)]
    assert run.finished
    assert not run.dense
    assert run.notes == ()


def test_the_best_epoch_is_the_one_that_train_calls_best(tmp_path: Path) -> None:
    """Highest top-1 of those that have met the target; before that, of those there are."""
    config = config_of(start=2.0, end=6.0)
    rows = rows_of(config)
    for row, top1 in zip(rows, (0.1, 0.9, 0.3, 0.2, 0.3, 0.5, 0.7, 0.6, 0.7, 0.4), strict=True):
        row["val_top1"] = top1
    best = read_run(write_run(tmp_path / "whole", config, rows)).best()
    assert best is not None
    assert best["epoch"] == 7
    early = read_run(write_run(tmp_path / "early", config, rows[:4])).best()
    assert early is not None
    assert early["epoch"] == 2
    assert read_run(write_run(tmp_path / "none", config, [])).best() is None


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "val_top1": None, "note": "x"},
        {"epoch": 3, "val_top1": True},
        {"epoch": 2, "val_top1": 0.5},
        {"val_top1": 0.9},
        {"epoch": 2, "val_top1": 0.25},
    ]
    run = read_run(write_run(tmp_path / "r", None, rows))
    assert [row["epoch"] for row in run.rows] == [1, 2, 3]
    assert [row.get("val_top1") for row in run.rows] == [None, 0.25, None]
    assert not run.finished
    assert "1 rows" in run.notes[0]


def test_a_run_without_config_or_epochs_says_so(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "metrics.jsonl").write_text('{"epoch": 1, "val_top1": 0.5}\n')
    bare = read_run(tmp_path / "bare")
    assert bare.method == "?"
    assert "no config.json" in bare.notes[0]
    assert "no epoch is finished" in read_run(write_run(tmp_path / "empty", None, [])).notes[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("pruning", "request", "model", "data", "epochs", "lr_drops", "seed", "versions", "layers", "command")


@given(
    config=st.dictionaries(st.sampled_from(KEYS), json_values),
    rows=st.lists(
        st.dictionaries(st.sampled_from(("epoch", "step", "val_top1", "sparsity_prunable")), json_values), max_size=4
    ),
)
def test_no_config_makes_reading_fail(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    run = read_run(write_run(tmp_path_factory.mktemp("run") / "r", config, rows))
    assert all(isinstance(value, float) for row in run.rows for value in row.values())
    run.best()


def test_a_damaged_run_is_left_out_where_others_are_whole(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    (write_run(tmp_path / "bad") / "config.json").write_text("{")
    sources = gather([tmp_path])
    assert [run.name for run in sources.runs] == ["good"]
    assert "bad" in sources.notes[0]
    with pytest.raises(StarfireError, match="bad"):
        gather([tmp_path / "bad"])
    both = gather([tmp_path / "bad", tmp_path / "good", tmp_path / "missing"])
    assert [run.name for run in both.runs] == ["good"]
    assert len(both.notes) == 2


def test_runs_are_found_in_folders_of_runs_and_taken_once(tmp_path: Path) -> None:
    for name in ("grid/a", "grid/deep/b", "c"):
        write_run(tmp_path / "runs" / name)
    paths = [tmp_path / "runs", tmp_path / "runs" / "c", tmp_path / "runs" / "c" / "metrics.jsonl"]
    assert sorted(run.name for run in gather(paths).runs) == ["a", "b", "c"]


def test_a_run_is_called_by_its_folder_however_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_run(tmp_path / "named") / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "named" / "deeper")
    assert [run.name for run in gather([Path("..")]).runs] == ["named"]
    monkeypatch.chdir(tmp_path / "named")
    assert [run.name for run in gather([Path(".")]).runs] == ["named"]


def test_nothing_given_means_the_newest_run(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "only")
    assert [run.name for run in gather([], tmp_path / "runs").runs] == ["only"]
    with pytest.raises(StarfireError, match="no runs"):
        gather([], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no file"), ("[1]", "list"), ("{", "is damaged"), ("{}", "attack")]
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StarfireError, match=words) as caught:
        gather([path])
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StarfireError, match="neither a run nor a checkpoint"):
        gather([tmp_path])


def test_results_of_attacks_lie_beside_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    write_attack(run / "best.attack-fgsm.json")
    other = {"checkpoint": "d/best.pt", "title": "dense", "images": 100, "points": [{"eps": 0, "top1": 0.5}]}
    write_attack(run / "best.attack-pgd.json", attack="pgd", against=other)
    write_attack(run / "best.attack-noise.json", attack="noise", points=[], complete=False)
    sources = gather([run])
    assert sorted((c.attack, c.title, len(c.points)) for c in sources.curves) == [
        ("fgsm", "ck 0.6", 3),
        ("pgd", "ck 0.6", 3),
        ("pgd", "dense", 1),
    ]
    assert "has not finished" in sources.notes[0]
    fgsm = next(c for c in sources.curves if c.attack == "fgsm")
    assert [(p.eps, p.low, p.top1, p.high) for p in fgsm.points][1] == pytest.approx((0.01, 0.68, 0.7, 0.72))
    assert len(fgsm.noise) == 3


def test_of_two_results_for_one_network_the_fuller_counts(tmp_path: Path) -> None:
    whole = write_attack(tmp_path / "best.attack-fgsm.json")
    document = json.loads(whole.read_text())
    part = write_attack(tmp_path / "best.attack-b.json", points=document["points"][:1])
    for paths in ([whole, part], [part, whole]):
        (curve,) = gather(paths).curves
        assert len(curve.points) == 3


def test_points_without_intervals_or_numbers(tmp_path: Path) -> None:
    points = [
        {"eps": 0.1, "top1": 0.5},
        {"eps": "x", "top1": 0.5},
        {"top1": 1},
        7,
        {"eps": 0, "top1": 0.9, "low": None},
    ]
    (curve,) = read_curves(write_attack(tmp_path / "a.json", points=points, controls=[]))
    assert [(p.eps, p.low, p.top1, p.high) for p in curve.points] == [(0, 0.9, 0.9, 0.9), (0.1, 0.5, 0.5, 0.5)]


def test_sizes_from_compress(tmp_path: Path) -> None:
    document = {"input": "a/best.pt", "output": "a/best.safetensors", "packed_bytes": 1234, "layers": []}
    assert read_sizes(document) == (Path("a/best.pt"), Path("a/best.safetensors"), 1234)
    assert read_sizes({"packed_bytes": 3}) is None
    path = tmp_path / "c.json"
    path.write_text(json.dumps(document | {"input": str(tmp_path / "gone.pt")}))
    write_run(tmp_path / "r")
    sources = gather([path, tmp_path / "r"])
    assert "not there" in sources.notes[0]
