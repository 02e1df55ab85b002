"""Training FLOPs: so far in every record, kept by a resumed run, and predicted from the era before a step is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.run import Run
from starfire_cli.pruning import Pruner
from starfire_cli.pruning.units import Cut, apply_cuts, live_share
from starfire_cli.records.flops import training_flops
from starfire_cli.records.train import EpochRecord, Finished, StepRecord, TrainingPlan
from starfire_cli.workflows.train import predicted_seconds
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.position import Past, Position
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.sparse_compute import SparseCompute
from tests.helpers.together import PLAIN, run

NET: dict[str, Any] = PLAIN | {
    "model": "tests.tiny:net",
    "limit_train": 320,
    "limit_val": 40,
    "epochs": 6,
    "era": "1:3",
}


def records(out: Path, **more: Any) -> list[Any]:
    return list(train(TrainRequest(**NET | more | {"out": out})))


def test_flops_so_far_add_up_and_a_dense_network_needs_them_all(tmp_path: Path) -> None:
    found = records(tmp_path, method="ck", target=0.8)
    plan, epochs = found[0], [r for r in found if isinstance(r, EpochRecord)]
    for number, record in enumerate(epochs, start=1):
        rows = [{"train_macs": one.train_macs} for one in epochs[:number]]
        assert record.training_flops == training_flops(rows)
        assert record.dense_flops == 6 * plan.macs * 320 * number
    assert epochs[0].training_flops == epochs[0].dense_flops  # before the era
    assert epochs[-1].training_flops < 0.6 * epochs[-1].dense_flops
    assert epochs[-1].elapsed_seconds == pytest.approx(sum(one.seconds for one in epochs))
    assert (found[-1].training_flops, found[-1].dense_flops) == (epochs[-1].training_flops, plan.dense_flops)
    assert epochs[-1].sparse_flops is None
    for step in (r for r in found if isinstance(r, StepRecord)):
        assert 0 < step.training_flops <= step.dense_flops <= plan.dense_flops


@pytest.mark.parametrize("stop", [7, 20])
def test_a_resumed_run_keeps_the_sums(tmp_path: Path, stop: int) -> None:
    more = {**NET, "method": "rigl", "target": 0.8}
    run(tmp_path / "whole", **more)
    run(tmp_path / "parts", **more, max_steps=stop)
    run(tmp_path / "parts", resume=Path("auto"), model=NET["model"])
    rows = [Run(next((tmp_path / name).iterdir())).read_metrics() for name in ("whole", "parts")]
    for name in ("training_flops", "dense_flops"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]]
    seconds = [row["elapsed_seconds"] for row in rows[1]]
    assert seconds == sorted(seconds) and seconds[-1] == pytest.approx(sum(row["seconds"] for row in rows[1]))


def test_a_run_of_an_earlier_version_claims_nothing() -> None:
    saved = dataclasses.asdict(Position(epoch=2, step=10))
    position = Position()
    position.restore(saved)
    assert position.past == Past() and position.epoch == 2
    del saved["past"], saved["dense_macs"]
    for step, known in ((10, False), (0, True)):
        position.restore(saved | {"step": step})
        assert position.past.known is known


def test_what_loops_of_live_weights_compute_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third epoch on half of a step is computed so."""
    begun = []

    def computed_share(self: SparseCompute, pruner: Pruner) -> float:
        begun.append(self)
        return 0.5 if len(begun) > 10 else 0.0

    monkeypatch.setattr(SparseCompute, "computed_share", computed_share)
    epochs = [r for r in records(tmp_path, method="dense", target=0.0) if isinstance(r, EpochRecord)]
    assert [(one.sparse_flops, one.sparse_seconds) for one in epochs[:2]] == [(None, None)] * 2
    assert epochs[-1].sparse_flops == epochs[-1].training_flops // 3
    assert 0 < epochs[-1].sparse_seconds < epochs[-1].elapsed_seconds
    assert load(Run(next(tmp_path.iterdir())).last, training=True).training["position"]["past"]["sparse_macs"]


@pytest.mark.parametrize("method", ["ck", "window", "intra", "gmp", "rigl", "granet", "lottery:rounds=2", "dense"])
def test_what_the_era_predicts_is_what_is_spent(method: str, tmp_path: Path) -> None:
    more = {"method": method, "era": None, "epochs": 3 if "lottery" in method else 8}
    plan = records(tmp_path, **more, dry_run=True)[0]
    spent = records(tmp_path, **more)[-1]
    assert isinstance(plan, TrainingPlan) and isinstance(spent, Finished)
    assert plan.dense_flops == spent.dense_flops
    assert plan.cost_share == pytest.approx(spent.training_flops / spent.dense_flops, abs=0.02)


def test_a_dry_run_says_what_is_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "tests.tiny:residual", "--epochs", "4", "--limit-train", "64", "--device", "cpu", "--dry-run"]
    assert main(["train", *options, "--method", "ck", "--era", "0:4", "--out", str(tmp_path)]) == 0
    assert " dense, " in (line := _training_line(capsys)) and "by live weights (" in line
    assert main(["train", *options, "--method", "sss", "--out", str(tmp_path)]) == 0
    assert _training_line(capsys).endswith(" dense; how much less live weights need is what has come out")


def test_a_dry_run_predicts_seconds_from_passes_that_it_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(number / 8 for number in range(100))  # each pass takes an eighth of a second
    monkeypatch.setattr(predicted_seconds, "perf_counter", lambda: next(clock))
    options = ["--model", "tests.tiny:net", "--epochs", "4", "--limit-train", "64", "--device", "cpu", "--dry-run"]
    options += ["--batch-size", "16", "--method", "ck", "--era", "0:4", "--out", str(tmp_path)]
    assert main(["train", *options, "--sparse-compute", "off"]) == 0
    said = "about 2 s of dense steps on this machine"  # four epochs of four batches
    assert _training_line(capsys, "time: ") == f"time: {said}; reading images and validation come on top"
    assert main(["train", *options, "--adversarial", "fgsm:eps=0.1", "--accumulate", "2"]) == 0
    line = _training_line(capsys, "time: ")
    assert line.startswith(f"time: {said}, 1") and "if those over live weights take what their FLOPs do" in line
    monkeypatch.setattr(predicted_seconds, "_ENOUGH", 0.1)
    assert main(["train", *options, "--sparse-compute", "off"]) == 0  # by the first pass alone
    assert said in capsys.readouterr().out
    assert main(["train", *options, "--compile"]) == 0
    assert "time: " not in capsys.readouterr().out


def _training_line(capsys: pytest.CaptureFixture[str], head: str = "training: ") -> str:
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith(head))


@pytest.mark.parametrize(
    ("cuts", "live"),
    [
        ((Cut("", "KC", 6),), 1 / 3),
        ((Cut("RS", "C", 6),), 0.5),
        ((Cut("RS", "C", 6), Cut("", "KC", 3)), 1 / 3),  # of the kernels that are left
        ((Cut("", "KC", 3), Cut("", "", 12 * 4 * 9 // 2)), 0.5),  # in all
        ((), 1.0),
    ],
)
def test_the_share_that_lives_is_told_from_the_cuts_alone(cuts: tuple[Cut, ...], live: float) -> None:
    weight = torch.randn(12, 4, 3, 3)
    assert live_share(cuts, weight.shape) == pytest.approx(live)
    assert float(apply_cuts(weight, torch.ones_like(weight, dtype=torch.bool), cuts).float().mean()) == pytest.approx(
        live
    )
