"""`--sparse-compute`: the same training by steps over live weights, from when on it pays, to the bit after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run
from starfire_cli.pruning.masks import digest
from starfire_cli.records.train import Notice
from starfire_cli.sparse.training import SparseTraining
from starfire_cli.sparse.training.convolution import IN_TORCH
from starfire_cli.workflows.train import sparse_compute
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest
from tests.helpers.together import PLAIN, run

pytest.importorskip("llvmlite")

NET: dict[str, Any] = {"model": "tests.tiny:net", "method": "ck", "target": 0.7}


def last(out: Path) -> Checkpoint:
    (folder,) = out.iterdir()
    return load(Run(folder).last, training=True)


def near(a: Checkpoint, b: Checkpoint, tolerance: float) -> None:
    for key, value in a.state.items():
        torch.testing.assert_close(b.state[key], value, rtol=tolerance, atol=tolerance, msg=key)


@pytest.fixture
def engaged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the loops, a step."""
    seen: list[int] = []
    plan = SparseTraining._plan

    def watched(self: SparseTraining, images: torch.Tensor) -> Any:
        if images.device.type != "meta":
            seen.append(len(images))
        return plan(self, images)

    monkeypatch.setattr(SparseTraining, "_plan", watched)
    return seen


@pytest.mark.parametrize(
    "more",
    [
        {"method": "ck", "clip_grad": 1.0, "ema": 0.9, "label_smoothing": 0.1, "accumulate": 2},
        {"method": "window", "adversarial": "fgsm:eps=4/255", "optimizer": "adam", "lr": 1e-3},
        {"method": "intra", "compact_state": True, "channels_last": False},
    ],
    ids=["ck", "window-attacked", "intra-compact"],
)
def test_what_is_learned_is_the_same(tmp_path: Path, engaged: list[int], more: dict[str, Any]) -> None:
    run(tmp_path / "dense", **more, sparse_compute="off")
    assert not engaged
    run(tmp_path / "sparse", **more, sparse_compute="on")
    assert engaged
    dense, sparse = last(tmp_path / "dense"), last(tmp_path / "sparse")
    assert digest(dense.masks or {}) == digest(sparse.masks or {})
    near(dense, sparse, 1e-3)


@pytest.mark.parametrize("stop", [7, 14], ids=["in-era", "after-era"])
def test_stopping_and_resuming_changes_no_bit(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[None] = []

    def measure(self: SparseTraining, pixels: Any) -> None:
        measured.append(None)
        self._plan(torch.empty((self._capacity, *pixels), device="meta"))
        for layer in self._convolutions.values():  # other than without a measurement
            layer.ways = {"forward": IN_TORCH, "weight": layer.candidates("weight")[-1]}

    monkeypatch.setattr(SparseTraining, "choose", measure)
    run(tmp_path / "whole", **NET, sparse_compute="on")
    assert len(measured) == 2, "at the first dead weight, and when the mask is fixed what torch computes"
    run(tmp_path / "parts", **NET, sparse_compute="on", max_steps=stop)
    run(tmp_path / "parts", model="tests.tiny:net", resume=Path("auto"))
    assert len(measured) == 4, "what the clock said is in the checkpoint"
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert all(torch.equal(value, parts.state[key]) for key, value in whole.state.items())


def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    more = {"method": "ck", "sparse_compute": "on", "epochs": 2, "era": "0.3:1"}
    run(tmp_path / "alone", **more)
    said = run(tmp_path / "company", 2, **more)
    assert "Notice" in said[0] and "Notice" in said[1]
    alone, company = last(tmp_path / "alone"), last(tmp_path / "company")
    assert digest(alone.masks or {}) == digest(company.masks or {})
    near(alone, company, 1e-3)


def test_a_method_that_revives_weights_is_followed(tmp_path: Path, engaged: list[int]) -> None:
    more = {"method": "rigl", "fc": "dense", "epochs": 2, "target": 0.6}
    run(tmp_path / "dense", **more, sparse_compute="off")
    run(tmp_path / "sparse", **more, sparse_compute="on")
    assert engaged
    near(last(tmp_path / "dense"), last(tmp_path / "sparse"), 1e-2)


def records(out: Path, **more: Any) -> list[Any]:
    return list(train(TrainRequest(**(PLAIN | NET | more | {"out": out}))))


@pytest.mark.parametrize(("sparse", "begins"), [(0.5, True), (2.0, False)], ids=["pays", "does-not"])
def test_auto_begins_where_it_is_measured_to_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engaged: list[int], sparse: float, begins: bool
) -> None:
    monkeypatch.setattr(sparse_compute, "_LARGE", 0)
    monkeypatch.setattr(sparse_compute, "_COSTS", 0.0)
    monkeypatch.setattr(sparse_compute, "_seconds", lambda module, *_: sparse if module.engaged else 1.0)
    seen = records(tmp_path)
    said = [record.text for record in seen if isinstance(record, Notice) and "timed anew" not in record.text]
    assert said and all(("on from here" in text) == begins and "ms" in text for text in said)
    assert len(said) == 1 or not begins, "once it is on, it is not measured again"
    assert bool(engaged) == begins


def test_auto_leaves_small_networks_alone(tmp_path: Path, engaged: list[int]) -> None:
    assert not [record for record in records(tmp_path) if isinstance(record, Notice)]
    assert not engaged and "sparse_compute" not in (last(tmp_path).training or {})


def test_a_measurement_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records(tmp_path / "without", sparse_compute="off")
    monkeypatch.setattr(sparse_compute, "_LARGE", 0)
    monkeypatch.setattr(sparse_compute, "_COSTS", 0.0)
    monkeypatch.setattr(sparse_compute, "_PAYS", 0.0)
    seen = records(tmp_path / "measured")
    assert sum(isinstance(record, Notice) for record in seen) >= 2
    a, b = last(tmp_path / "without"), last(tmp_path / "measured")
    assert all(torch.equal(value, b.state[key]) for key, value in a.state.items())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--compile"], "does not go with --compile"),
        (["--amp"], "--amp does not"),
        (["--model", "tests.tiny:branching"], "cannot trace"),
    ],
)
def test_where_it_cannot_be_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], why: str
) -> None:
    command = [
        "train",
        "--model",
        "tests.tiny:net",
        "--device",
        "cpu",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert main([*command, "--sparse-compute", "on", *options]) == 2
    error = capsys.readouterr().err
    assert "--sparse-compute on" in error and why in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
