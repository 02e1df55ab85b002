"""TensorBoard reads back what a run logged."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.records.train import EpochRecord, Record, Started, StepRecord
from starfire_cli.workflows.train.tensorboard import logged


def started(run: Path, *, step: int = 0, resumed: bool = False) -> Started:
    return Started(run=run, epoch=0, epochs=2, step=step, steps=16, steps_per_epoch=8, resumed=resumed, notes=())


def epoch(number: int) -> EpochRecord:
    return EpochRecord(
        epoch=number,
        step=8 * number,
        threshold=0.1 * number,
        sparsity_prunable=0.1 * number,
        sparsity_total=0.09 * number,
        train_loss=1.0 / number,
        train_top1=0.5,
        val_loss=0.7,
        val_top1=0.25 * number,
        val_top5=0.9,
        lr=0.1,
        images_per_second=100.0,
        seconds=2.0,
        mask_seconds=0.1,
        best=True,
    )


def test_an_unknown_logger_is_refused_and_none_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="tensorboard"):
        logged(iter(()), "wandb")
    records: list[Record] = [started(tmp_path), epoch(1)]
    assert list(logged(iter(records), "none")) == records
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    touched = []

    def records() -> Iterator[Record]:
        touched.append(1)
        yield epoch(1)

    with pytest.raises(StarfireError, match=r"starfire-cli\[tensorboard\]"):
        logged(records(), "tensorboard")
    assert not touched


def test_tensorboard_reads_every_number_back(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="starfire-cli[tensorboard] is not installed"
    )
    step = StepRecord(epoch=1, batch=3, step=3, loss=2.5, top1=0.1, threshold=0.0, sparsity=0.0, images_per_second=1.0)
    first: list[Record] = [started(tmp_path), step, epoch(1), epoch(2)]
    assert list(logged(iter(first), "tensorboard")) == first
    # A run that goes on after epoch 1 replaces what was logged after it.
    again: list[Record] = [started(tmp_path, step=8, resumed=True), epoch(2)]
    list(logged(iter(again), "tensorboard"))
    read = reader.EventAccumulator(str(tmp_path))
    read.Reload()
    top1 = [(event.step, event.value) for event in read.Scalars("val/top1")]
    assert top1 == [(8, 0.25), (16, 0.5)]
    assert [event.value for event in read.Scalars("train/running_loss")] == [2.5]
    tags = set(read.Tags()["scalars"])
    assert {"sparsity/prunable", "sparsity/threshold", "val/top5", "train/lr", "speed/mask_seconds"} <= tags
    assert "val/robust_top1" not in tags
