"""Runs whose pruning comes to nothing say so before they begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from starfire_cli.errors import BadOption
from starfire_cli.records.train import TrainingPlan
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest

TINY: dict[str, Any] = {"limit_val": 50, "limit_train": 320, "epochs": 3, "model": "tests.tiny:net", "device": "cpu"}


def plan(tmp_path: Path, **more: Any) -> TrainingPlan:
    request = TrainRequest(**{**TINY, **more}, out=tmp_path, dry_run=True)
    (found,) = [r for r in train(request, frozenset(more)) if isinstance(r, TrainingPlan)]
    assert not list(tmp_path.iterdir())
    return found


@pytest.mark.parametrize("method", ["window", "ck", "gmp", "rigl", "static", "prunetrain"])
def test_nothing_left_to_prune_is_refused(tmp_path: Path, method: str) -> None:
    with pytest.raises(BadOption) as caught:
        plan(tmp_path, method=method, keep_dense=("*",))
    said = str(caught.value)
    assert said.startswith(f"nothing is left to prune with --method {method}") and "(--keep-dense *)" in said


def test_dense_training_may_keep_all_layers(tmp_path: Path) -> None:
    assert plan(tmp_path, method="dense", keep_dense=("*",)).dead == 0


def test_narangs_target_is_shown_and_what_it_comes_to(tmp_path: Path) -> None:
    found = plan(tmp_path, method="narang", target=0.7)
    assert ("target", "0.7") in found.settings and found.dead / found.prunable == pytest.approx(0.7, abs=0.002)
    assert all(row.rule.startswith("about ") for row in found.layers if row.left < row.weights)
    assert any("near target 0.7" in what for _, what in found.timeline)
    own = plan(tmp_path, method="narang:q=0.1", target=0.7)
    assert own.dead == 0 and "target" not in dict(own.settings)
    assert any("--method narang:q=0.1 meets none" in note for note in own.notes)


def test_one_evaluation_alone_is_told(tmp_path: Path) -> None:
    note = "has room for one evaluation of the masks, after step 8"
    assert any(note in said for said in plan(tmp_path, method="rigl:every=8", target=0.8).notes)
    for method in ("rigl:every=3", "rigl", "gmp:every=5"):
        assert not any("one evaluation" in said for said in plan(tmp_path, method=method, target=0.8).notes)


def test_target_0_has_no_penalty_unless_the_method_looks_at_none(tmp_path: Path) -> None:
    assert any(
        "prunes nothing and adds no penalty" in said for said in plan(tmp_path, method="lebedev", target=0.0).notes
    )
    free = plan(tmp_path, method="slimming", target=0.0)
    assert any(what == "the penalty begins" for _, what in free.timeline)
    assert not any("no penalty" in said for said in free.notes)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"values": "codebook:bits=4"}, "--values codebook:bits=4 shares the values of a network that is trained"),
        ({"method": "slimming:constants=zero"}, "slimming:constants=zero: constants is for starfire prune-mask"),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadOption, match=said):
        plan(tmp_path, **more)
