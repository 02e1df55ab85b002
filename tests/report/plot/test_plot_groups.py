"""Runs that differ by their seed alone are taken together, and others get names that tell them apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from starfire_cli.records.plot import Material, RunHistory
from starfire_cli.report.plot.figures._time import curves, rounds_of
from starfire_cli.report.plot.groups import (
    Group,
    disambiguate,
    group_runs,
    pretty_title,
    row_names,
    with_experiment_titles,
)
from starfire_cli.workflows.plot.run_files import read_curves, read_run
from tests.helpers.plot_runs import config_of, network, rows_of, write_attack, write_run


def run(folder: Path, *args: Any, **settings: Any) -> RunHistory:
    return read_run(write_run(folder / f"run{len(list(folder.iterdir()))}", config_of(*args, **settings)))


def labels(runs: list[RunHistory]) -> list[str]:
    return [group.label for group in group_runs(runs)]


def test_seeds_names_and_places_make_no_experiment(tmp_path: Path) -> None:
    runs = [run(tmp_path, seed=seed, name=f"n{seed}", out="elsewhere", device=d) for seed, d in enumerate("ab")]
    runs.append(run(tmp_path, seed=2, workers=7))
    (group,) = group_runs(runs)
    assert [member.seed for member in group.runs] == [0, 1, 2]
    assert group.label == "CK 60 %"


def test_dense_runs_are_one_experiment_whatever_era_they_were_given(tmp_path: Path) -> None:
    runs = [run(tmp_path, "dense", start=1.0, seed=0), run(tmp_path, "dense", start=3.0, target=0.9, seed=1)]
    (group,) = group_runs(runs)
    assert group.first.dense
    assert group.label == "Dense"


def test_names_say_no_more_than_they_must(tmp_path: Path) -> None:
    dense, ck = run(tmp_path, "dense"), run(tmp_path, "ck", 0.6)
    assert labels([ck, dense]) == ["Dense", "CK 60 %"]
    late = run(tmp_path, "ck", 0.6, start=4.0, end=6.0)
    assert labels([dense, late, ck]) == ["Dense", "CK 60 %, start 2", "CK 60 %, start 4"]
    at_step = run(tmp_path, "ck", 0.6, start=626 / 391, end=6.0)
    assert labels([at_step, late]) == ["CK 60 %, start 1.6", "CK 60 %, start 4"]
    wide = run(tmp_path, "ck", 0.8, start=2.0, end=7.0)
    more = run(tmp_path, "ck", 0.8, start=2.0, end=4.0)
    assert labels([ck, more, wide]) == ["CK 60 %", "CK 80 %", "CK 80 %, era 2-7"]
    slow = run(tmp_path, "ck", 0.6, lr=0.01)
    assert sorted(labels([ck, slow])) == ["CK 60 %, lr 0.01", "CK 60 %, lr 0.1"]
    other = run(tmp_path, "ck", 0.6, model="resnet56")
    assert sorted(labels([ck, dense, other])) == ["CK 60 %, resnet20", "CK 60 %, resnet56", "Dense, resnet20"]
    capped = run(tmp_path, "window:max_nonzero=2", 0.6)
    assert labels([capped]) == ["Window, max_nonzero=2 60 %"]


def pruned_before(folder: Path, sparsity: float, **settings: Any) -> RunHistory:
    """A run of `--method dense` that began with a pruned network."""
    config = config_of("dense", init="pruned.pt", **settings)
    rows = [row | {"sparsity_prunable": sparsity, "sparsity_total": sparsity} for row in rows_of(config)]
    return read_run(write_run(folder / f"run{len(list(folder.iterdir()))}", config, rows))


def test_a_network_that_came_in_pruned_is_not_called_dense(tmp_path: Path) -> None:
    dense, pruned, ck = run(tmp_path, "dense"), pruned_before(tmp_path, 0.59864), run(tmp_path, "ck", 0.6)
    assert labels([pruned, ck, dense]) == ["Dense", "CK 60 %", "Pruned 59.86 %"]
    assert [r.dense for r in (dense, pruned, ck)] == [True, False, False]
    again = pruned_before(tmp_path, 0.59864, seed=1)
    assert labels([pruned, again]) == ["Pruned 59.86 %"]
    config = config_of("dense", init="pruned.pt") | {"inherited_sparsity": 0.25}
    assert labels([read_run(write_run(tmp_path / "begun", config, []))]) == ["Pruned 25 %"]
    config = config_of("dense", init="small.pt")
    config["model"]["shrink"] = {"conv1": {"outputs": [0]}}
    assert labels([read_run(write_run(tmp_path / "small", config)), dense]) == ["Dense", "Shrunk"]


def test_runs_that_say_nothing_stand_alone_under_their_folders_names(tmp_path: Path) -> None:
    unknown = [read_run(write_run(tmp_path / name, {}, [])) for name in ("b", "a")]
    assert labels(unknown) == ["a", "b"]


def test_names_are_different_whatever_differs(tmp_path: Path) -> None:
    runs = [run(tmp_path, weight_decay=0.1, batch_size=n, novel={"deep": [n]}) for n in (32, 64)]
    runs.append(run(tmp_path, weight_decay=0.2, batch_size=64, novel={"deep": [64]}))
    assert len(set(labels(runs))) == 3


def test_rows_of_a_table_are_named_without_the_target(tmp_path: Path) -> None:
    runs = [run(tmp_path, "ck", t, start=s, end=s + 2) for t in (0.6, 0.8) for s in (2.0, 4.0)]
    assert row_names(group_runs(runs)) == ["CK, start 2", "CK, start 4"] * 2


def test_one_method_has_one_hue_and_one_target_one_dash(tmp_path: Path) -> None:
    runs = [run(tmp_path, m, t) for m in ("ck", "window") for t in (0.6, 0.8)]
    groups = {group.label: group for group in group_runs(runs)}
    assert groups["CK 60 %"].line == groups["Window 60 %"].line != groups["CK 80 %"].line
    assert len({group.marker for group in groups.values()}) == 4  # told apart without colours, too
    assert len({group.colour for group in groups.values()}) == 4


def test_titles(tmp_path: Path) -> None:
    assert [pretty_title(t) for t in ("ck 0.6", "dense", "window:max_nonzero=2 0.625", "resnet20.th", "My net 2")] == [
        "CK 60 %",
        "Dense",
        "Window, max_nonzero=2 62.5 %",
        "resnet20.th",
        "My net 2",
    ]
    assert disambiguate(["a", "b", "a"], ["x", "y", "z"]) == ["a (x)", "b", "a (z)"]


def test_networks_of_runs_are_called_as_their_experiments(tmp_path: Path) -> None:
    ck, late = run(tmp_path), run(tmp_path, start=4.0, end=6.0)
    picture = replace(network(late.path / "best.pt"), title="ck 0.6")
    named = with_experiment_titles(
        Material(runs=(ck, late), networks=(picture, network(tmp_path / "x.pt"))), group_runs([ck, late])
    )
    assert [n.title for n in named.networks] == ["CK 60 %, start 4", "ck 0.6"]


def test_networks_and_attacks_come_in_the_order_of_the_experiments(tmp_path: Path) -> None:
    runs = [run(tmp_path), run(tmp_path, "dense"), run(tmp_path, "window")]
    files = [tmp_path / "x.pt", *(one.path / "best.pt" for one in runs)]
    curves = [read_curves(write_attack(file.with_suffix(".json"), checkpoint=str(file)))[0] for file in files]
    material = Material(runs=tuple(runs), networks=tuple(map(network, files)), curves=tuple(curves))
    named = with_experiment_titles(material, group_runs(runs))
    assert [n.title for n in named.networks] == ["Dense", "Window 60 %", "CK 60 %", "ck 0.6"]
    assert [c.title for c in named.curves] == ["Dense", "Window 60 %", "CK 60 %", "ck 0.6"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_line_ends_with_its_round(seeds: int) -> None:
    """Two epochs a round; the run of one epoch more is alone."""
    rows = [{"epoch": float(e), "step": 5.0 * e, "round": float(-(-e // 2)), "val_top1": 0.1 * e} for e in range(1, 6)]
    runs = [RunHistory(path=Path(f"{seed}"), rows=tuple(rows[: 5 - seed])) for seed in range(seeds)]
    assert [rounds_of(run) for run in runs] == [[2, 4], [2]][:seeds]
    for curve, count in zip(
        curves(Group(label="a", method="lottery", runs=tuple(runs)), "val_top1", "step"), (5, 4), strict=False
    ):
        gaps = [x for x, y in zip(curve.x, curve.y, strict=True) if y != y]
        assert gaps == pytest.approx([10, 20][: count - 3])
        assert [y for y in curve.y if y == y] == pytest.approx([0.1 * e for e in range(1, count + 1)])
