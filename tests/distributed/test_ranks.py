"""Several ranks learn what one process learns, send less once masks are fixed, and say which of them went astray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run
from starfire_cli.pruning import Pruner
from starfire_cli.pruning.masks import digest
from tests.helpers.data_layouts import class_folders
from tests.helpers.together import run, together

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def only_run(out: Path) -> Run:
    (folder,) = out.iterdir()
    return Run(folder)


def last(out: Path) -> Checkpoint:
    return load(only_run(out).last, training=True)


def close(a: Checkpoint, b: Checkpoint) -> None:
    assert digest(a.masks) == digest(b.masks)
    for key, value in a.state.items():
        torch.testing.assert_close(value, b.state[key], rtol=2e-4, atol=2e-6)


def same_bits(a: Checkpoint, b: Checkpoint) -> None:
    assert digest(a.masks) == digest(b.masks)
    assert all(torch.equal(value, b.state[key]) for key, value in a.state.items())


@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        (2, {"accumulate": 3, "ema": 0.9, "method": "intra"}),
        (3, {"adversarial": "fgsm:eps=4/255", "accumulate": 2, "clip_grad": 1.0}),
        (2, {"optimizer": "adam", "lr": 1e-3, "method": "ck", "compact_state": True, "label_smoothing": 0.1}),
    ],
    ids=["accumulate-ema", "uneven-adversarial", "adam-compact"],
)
def test_ranks_together_learn_what_one_process_learns(tmp_path: Path, ranks: int, more: dict[str, Any]) -> None:
    alone = run(tmp_path / "alone", **more)
    company = run(tmp_path / "company", ranks, **more)
    assert company[0] == alone[0] and company[0].endswith("Finished")
    assert company[1].endswith("EpochRecord")  # rank 0 sums up
    close(last(tmp_path / "alone"), last(tmp_path / "company"))
    for a, b in zip(*(only_run(tmp_path / name).read_metrics() for name in ("alone", "company")), strict=True):
        assert b.pop("gradient_bytes") > 0 and a.keys() == b.keys()
        for key in ("epoch", "step", "threshold", "sparsity_prunable", "lr"):
            assert a[key] == b[key]
        for key in ("train_loss", "val_loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-4)
        for key in ("val_top1", "val_top5"):  # of 101 images, each counted once: at most one falls otherwise
            assert abs(a[key] - b[key]) < 1.5 / 101 and round(b[key] * 101, 6).is_integer()


def test_leaving_out_dead_gradients_changes_no_bit_and_sends_live_ones_only(tmp_path: Path) -> None:
    def everything(out: Path) -> str:
        from starfire_cli.distributed.sparse_allreduce import Sending

        Sending.leave_out = lambda self, weights, masks: None  # type: ignore[method-assign]
        return run(out)[0]

    assert run(tmp_path / "live", 2)[0].endswith("Finished")
    assert together(2, everything, tmp_path / "all")[0].endswith("Finished")
    live, whole = last(tmp_path / "live"), last(tmp_path / "all")
    same_bits(live, whole)
    for state in (live, whole):
        assert state.training is not None
    for a, b in zip(*(c.training["optimizer"]["state"].values() for c in (live, whole)), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    dead = int(torch.cat([(~mask).flatten() for mask in live.masks.values()]).sum())
    parameters = sum(value.numel() for value in live.state.values())
    rows = [only_run(tmp_path / name).read_metrics() for name in ("live", "all")]
    assert rows[0][-1]["gradient_bytes"] == 4 * (parameters - dead) < 4 * parameters / 2
    assert rows[0][0]["gradient_bytes"] == rows[1][-1]["gradient_bytes"] == 4 * parameters


@pytest.mark.parametrize("stop", [pytest.param(4, marks=pytest.mark.slow), 9, 14], ids=["early", "in-era", "after-era"])
def test_stopping_and_resuming_two_ranks_changes_no_bit(tmp_path: Path, stop: int) -> None:
    more = {"model": "tests.tiny:net", "method": "ck", "ema": 0.9}  # with BatchNorm and dropout
    run(tmp_path / "whole", 2, **more)
    assert run(tmp_path / "parts", 2, **more, max_steps=stop)[1].endswith("Stopped")
    run(tmp_path / "parts", 2, model="tests.tiny:net", resume=Path("auto"))
    same_bits(last(tmp_path / "whole"), last(tmp_path / "parts"))
    raw = [last(tmp_path / name).training["raw"] for name in ("whole", "parts")]
    assert all(torch.equal(value, raw[1][key]) for key, value in raw[0].items())


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    run(tmp_path / "alone", optimizer="adam", lr=1e-3)
    run(tmp_path / "parts", 2, optimizer="adam", lr=1e-3, max_steps=5)
    run(tmp_path / "parts", 1, resume=Path("auto"), max_steps=11)
    run(tmp_path / "parts", 3, resume=Path("auto"))
    close(last(tmp_path / "alone"), last(tmp_path / "parts"))


def test_shared_values_are_trained_alike_and_go_on_to_the_bit(tmp_path: Path) -> None:
    run(tmp_path / "pruned", epochs=1, era="0.2:0.8")
    more = {"init": only_run(tmp_path / "pruned").last, "values": "codebook:bits=3", "optimizer": "adam", "lr": 1e-3}
    run(tmp_path / "alone", **more)
    run(tmp_path / "whole", 2, **more)
    run(tmp_path / "parts", 2, **more, max_steps=8)
    run(tmp_path / "parts", 2, resume=Path("auto"))
    close(last(tmp_path / "alone"), last(tmp_path / "whole"))
    same_bits(last(tmp_path / "whole"), last(tmp_path / "parts"))
    for key, mask in last(tmp_path / "parts").masks.items():
        assert len(last(tmp_path / "parts").state[key][mask].unique()) <= 8


def test_statistics_are_the_mean_of_the_ranks(tmp_path: Path) -> None:
    """Of one step at momentum 0.1: the mean of the shares' statistics, computed here."""
    run(tmp_path, 2, model="tests.tiny:net", max_steps=1, method="dense", augment="none")
    from starfire_cli.workflows.train.request import TrainRequest
    from starfire_cli.workflows.train.session_setup import build_session

    how = {"model": "tests.tiny:net", "limit_train": 322, "limit_val": 101, "device": "cpu", "batch_size": 64}
    session = build_session(TrainRequest(**how, epochs=3, augment="none", method="dense"))
    images, _ = next(session.data.train.batches(0))
    with torch.no_grad():
        features = session.network.net.conv1((images - session.network.model.mean) / session.network.model.std)
        shares = [features[rank::2] for rank in range(2)]
        means = torch.stack([share.mean((0, 2, 3)) for share in shares]).mean(0)
        variances = torch.stack([share.transpose(0, 1).flatten(1).var(1) for share in shares]).mean(0)
    state = last(tmp_path).state
    torch.testing.assert_close(state["bn1.running_mean"], 0.1 * means, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state["bn1.running_var"], 0.9 + 0.1 * variances, rtol=1e-4, atol=1e-6)


def test_masks_that_differ_name_rank_and_layer(tmp_path: Path) -> None:
    def astray(out: Path, what: str) -> str:
        import os

        after_step = Pruner.after_step

        def wrong(self: Pruner, step: int) -> bool:
            changed = after_step(self, step)
            mask = self.masks["conv2.weight"]
            if step == 5 and os.environ["RANK"] == "1":
                alive, dead = mask.nonzero()[0], (~mask).nonzero()[0]
                mask[tuple(alive)] = False
                if what == "mask":  # as many, but others
                    mask[tuple(dead)] = True
                else:
                    self._tensors.counts.set("conv2.weight", self.zeros["conv2.weight"] + 1)
            return changed

        Pruner.after_step = wrong  # type: ignore[method-assign]
        return run(out, save_every=5)[0]

    for what in ("mask", "number"):
        found = together(2, astray, tmp_path / what, what)
        assert len(set(found)) == 1, "all ranks say the same"
        assert found[0].startswith("Mismatch: conv2.weight") and "rank 1" in found[0]
        assert not only_run(tmp_path / what).last.exists()


def test_an_error_of_one_rank_is_an_error_of_all(tmp_path: Path) -> None:
    def failing(out: Path) -> str:
        import os

        from starfire_cli.errors import StarfireError
        from starfire_cli.workflows.train import resume as resuming

        def broken(*args: object, **more: object) -> None:
            raise StarfireError("no such disk")

        if os.environ["RANK"] == "1":
            resuming.build_session = broken  # type: ignore[assignment]
        return run(out)[0]

    assert together(2, failing, tmp_path / "x") == ["StarfireError: rank 1 of 2: no such disk"] * 2
    assert not (tmp_path / "x").exists()


def test_options_that_make_no_sense_for_several(tmp_path: Path) -> None:
    assert "--batch-size 1 is for all 2 processes" in run(tmp_path, 2, batch_size=1)[0]
    assert "--device 'cuda:1' cannot be that of all 2" in run(tmp_path, 2, device="cuda:1")[1]
    assert "--batch-size 64 is of all" in run(tmp_path, 2, batch_size_per_device=16)[0]
    assert "--sync-bn is torch's SyncBatchNorm" in run(tmp_path, 2, sync_bn=True)[0]
    assert not list(tmp_path.iterdir())
    run(tmp_path, 2, batch_size=None, batch_size_per_device=16, max_steps=1)
    assert last(tmp_path).meta.values["request"]["batch_size"] == 32
    assert "contradicts the run" in run(tmp_path, 2, resume=Path("auto"), batch_size_per_device=8)[0]


def test_corrupt_images_left_out_leave_the_others_their_weight(tmp_path: Path) -> None:
    """Nobody knows how many images the other rank has: with one gone, the loss is still the mean over those there."""
    folder = tmp_path / "data"
    class_folders(folder / "train", ("cat", "dog"), 11, size=(120, 150), suffix=".jpg")
    class_folders(folder / "val", ("cat", "dog"), 5, size=(150, 120), suffix=".jpg", seed=500)
    (folder / "train/cat/003.jpg").write_bytes(b"no picture")
    more: dict[str, Any] = {"model": "tests.tiny:net", "data": str(folder), "image_size": 32, "skip_corrupt": True}
    more |= {"limit_train": None, "limit_val": None, "batch_size": 22, "epochs": 1, "era": "0:1", "lr": 0.0}
    more |= {"warmup": 0.0, "mask_every": 1, "method": "dense", "augment": "none"}
    found = run(tmp_path / "runs", 2, **more)
    assert found[0].endswith("Finished"), found
    (row,) = only_run(tmp_path / "runs").read_metrics()
    assert round(row["train_top1"] * 21, 6).is_integer() and round(row["val_top1"] * 10, 6).is_integer()
