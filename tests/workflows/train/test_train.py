"""Training end to end on real digits with a small network: what is written, what is printed, what never comes back."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from starfire_cli.cli import main
from starfire_cli.errors import BadOption, Mismatch
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.run import Run
from starfire_cli.pruning.masks import digest
from starfire_cli.records.train import EpochRecord, Finished, TrainingPlan
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.resume import open_session
from starfire_cli.workflows.train.save import save

TINY = {"model": "tests.tiny:net", "limit_train": 320, "limit_val": 100, "device": "cpu", "epochs": 4, "era": "1:3"}
MODEL_GIVEN = frozenset({"model"})  # a resumed run does not run the code that the file names
OPTIONS = ["--model", "tests.tiny:net", "--limit-train", "320", "--limit-val", "100", "--device", "cpu"]


def run_of(tmp_path: Path, **more) -> tuple[Run, list]:
    records = list(train(TrainRequest(**{**TINY, **more}, out=tmp_path)))
    return Run(records[-1].run), records


@pytest.mark.parametrize("method", ["window", "ck", "intra", "inter", "dense"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_sparsity_only_grows_and_dead_weights_stay_exact_zeros(tmp_path, monkeypatch, method, optimizer):
    from starfire_cli.pruning import Pruner

    dead_before: dict[str, torch.Tensor] = {}
    checked = 0
    after_step = Pruner.after_step

    def watched(self, step):
        nonlocal checked
        changed = after_step(self, step)
        for key, mask in self.masks.items():
            weight = self.weights[key]
            assert not weight.detach()[~mask].count_nonzero()
            assert not (~mask < dead_before.get(key, torch.zeros_like(mask))).any(), "a dead weight came back"
            dead_before[key] = ~mask
            for value in self._tensors.optimizer.state[weight].values():
                if value.shape == weight.shape:
                    assert not value[~mask].count_nonzero()
            checked += 1
        return changed

    monkeypatch.setattr(Pruner, "after_step", watched)
    run, records = run_of(tmp_path, method=method, optimizer=optimizer, lr=0.01, weight_decay=1e-2, target=0.5)
    rows = [r for r in records if isinstance(r, EpochRecord)]
    assert len(rows) == 4
    if method == "dense":
        assert not checked and rows[-1].sparsity_prunable == 0
        return
    assert checked
    assert [r.sparsity_prunable for r in rows] == sorted(r.sparsity_prunable for r in rows)
    assert rows[0].sparsity_prunable == 0
    assert rows[2].sparsity_prunable == rows[3].sparsity_prunable >= 0.5
    checkpoint = load(run.last)
    for key, mask in checkpoint.masks.items():
        values = checkpoint.state[key][~mask]
        assert not values.count_nonzero() and not values.signbit().any()


def test_the_plan_says_what_training_then_does(tmp_path):
    for method in ("window", "ck", "intra:share=0.3", "inter"):
        _, records = run_of(tmp_path, method=method, target=0.6, fc="two-tier")
        plan = next(r for r in records if isinstance(r, TrainingPlan))
        end = records[-1]
        assert isinstance(end, Finished)
        assert end.sparsity_prunable == pytest.approx(plan.dead / plan.prunable, abs=1e-12)
        assert end.sparsity_total == pytest.approx(plan.dead / plan.parameters, abs=1e-12)
        assert 0 < plan.macs_left < plan.macs


def test_a_run_folder_holds_what_it_should(tmp_path, capsys):
    argv = ["train", *OPTIONS, "--epochs", "3", "--era", "0.5:2", "--out", str(tmp_path), "--name", "a", "--json"]
    assert main(argv) == 0
    out = capsys.readouterr()
    summary = json.loads(out.out)
    assert set(summary) == {
        *("run", "checkpoint", "val_top1", "val_top5", "target", "sparsity_prunable", "sparsity_total"),
        *("epochs", "seconds", "images_per_second", "training_flops", "dense_flops"),
    }
    assert "choose others with --data" in out.err
    run = Run(tmp_path / "a")
    assert sorted(p.name for p in run.path.iterdir()) == ["best.pt", "config.json", "last.pt", "metrics.jsonl"]
    rows = run.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert set(rows[0]) == {
        *("epoch", "step", "threshold", "sparsity_prunable", "sparsity_total", "train_loss", "train_top1"),
        *("val_loss", "val_top1", "val_top5", "lr", "images_per_second", "seconds", "mask_seconds"),
        *("training_flops", "dense_flops", "elapsed_seconds"),
        *("macs", "train_macs"),
    }
    raw = torch.load(run.last, weights_only=True)
    assert {
        "model",
        "masks",
        "masks_digest",
        "meta",
        "optimizer",
        "scheduler",
        "scaler",
        "era",
        "rng",
        "sampler",
    } <= set(raw)
    best = load(run.best)
    assert best.meta.metrics.val_top1 == summary["val_top1"] == max(r["val_top1"] for r in rows if r["step"] >= 10)
    config = run.read_config()
    assert config["pruning"]["method"] == "window" and config["epochs"] == 3 and config["request"]["seed"] == 0


def test_the_weights_load_into_torchvisions_own_model(tmp_path):
    run, _ = run_of(tmp_path, model="resnet18", epochs=1, era="0:1", limit_train=64, limit_val=20, image_size=16)
    state = torch.load(run.best, weights_only=True)["model"]
    torchvision.models.resnet18(num_classes=10).load_state_dict(state)


STOPPED: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-3},
    "ema-clip": {"method": "ck", "ema": 0.9, "clip_grad": 1.0, "ramp": "cubic"},
    "accumulate": {"method": "intra", "accumulate": 3, "adversarial": None, "workers": 0, "lr_drops": (1.5,)},
}


@pytest.fixture(scope="module", params=STOPPED.values(), ids=list(STOPPED))
def never_stopped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Run]:
    """Options, and the run with them."""
    return request.param, run_of(tmp_path_factory.mktemp("whole"), **request.param)[0]


@pytest.mark.parametrize("stop", [3, 8, 10, 17])
def test_stopping_and_resuming_changes_no_bit(tmp_path, never_stopped, stop):
    extra, whole = never_stopped
    list(train(TrainRequest(**{**TINY, **extra}, out=tmp_path / "parts", max_steps=stop)))
    parts = Run(next((tmp_path / "parts").iterdir()))
    assert load(parts.last, training=True).training["position"]["step"] == stop
    list(train(TrainRequest(resume=parts.path, model=TINY["model"]), MODEL_GIVEN))
    a, b = (load(run.last, training=True) for run in (whole, parts))
    assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
    assert digest(a.masks) == digest(b.masks)
    for x, y in zip(_tensors(a.training["optimizer"]), _tensors(b.training["optimizer"]), strict=True):
        assert torch.equal(x, y)
    same = ("epoch", "step", "train_loss", "train_top1", "val_loss", "val_top1", "sparsity_prunable", "lr")
    rows = [[[row[k] for k in same] for row in run.read_metrics()] for run in (whole, parts)]
    assert rows[0] == rows[1]
    assert load(whole.best).meta.metrics.epoch == load(parts.best).meta.metrics.epoch


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def test_more_epochs_go_on_after_the_end(tmp_path):
    run, _ = run_of(tmp_path, lr_schedule="constant")
    before = load(run.last)
    *_, end = train(TrainRequest(resume=run.path, model=TINY["model"], epochs=6), MODEL_GIVEN | {"epochs"})
    assert end.epochs == 6 and [row["epoch"] for row in run.read_metrics()] == [1, 2, 3, 4, 5, 6]
    assert digest(load(run.last).masks) == digest(before.masks)


def test_a_resumed_run_keeps_its_settings(tmp_path, capsys):
    run, _ = run_of(tmp_path)
    assert main(["train", "--resume", str(run.path), *OPTIONS[:2], "--lr", "0.5"]) == 2
    assert "--lr 0.5 contradicts" in capsys.readouterr().err
    assert main(["train", "--resume", str(run.path), *OPTIONS[:2], "--epochs", "2"]) == 2
    assert "less than what is trained already" in capsys.readouterr().err


def test_a_mask_that_changes_after_the_era_is_an_error(tmp_path):
    run, _ = run_of(tmp_path)
    session = open_session(TrainRequest(resume=run.path, model=TINY["model"]), MODEL_GIVEN)
    key = session.pruner.layers[0].key
    mask = session.pruner.masks[key]
    lost = tuple(mask.nonzero()[0])
    mask[lost] = False
    with torch.no_grad():
        dict(session.network.net.named_parameters())[key][lost] = 0
    with pytest.raises(Mismatch, match=f"mask of {key} changed after the era"):
        save(session, run.last, {})


def test_a_dead_weight_that_is_not_zero_is_an_error(tmp_path):
    run, _ = run_of(tmp_path)
    session = open_session(TrainRequest(resume=run.path, model=TINY["model"]), MODEL_GIVEN)
    layer = session.pruner.layers[1]
    with torch.no_grad():
        dict(session.network.net.named_parameters())[layer.key][~session.pruner.masks[layer.key]] = 0.5
    with pytest.raises(Mismatch, match=layer.key):
        save(session, run.last, {})


def test_a_loss_that_explodes_stops_the_run_and_saves_nothing_bad(tmp_path, capsys):
    argv = ["train", *OPTIONS, "--model", "tests.tiny:explodes", "--epochs", "8", "--out", str(tmp_path), "--name", "x"]
    assert main([*argv, "--batch-size", "32"]) == 1
    error = capsys.readouterr().err
    assert "loss became NaN or inf by step 21 (epoch 3)" in error and "--lr" in error and "last.pt" in error
    assert all(value.isfinite().all() for value in load(tmp_path / "x" / "last.pt").state.values())
    assert load(tmp_path / "x" / "last.pt").meta.metrics.epoch == 2


def test_init_takes_weights_and_masks_and_what_is_dead_stays_dead(tmp_path):
    first, _ = run_of(tmp_path / "a", method="ck", target=0.5)
    masks = load(first.best).masks
    run, _ = run_of(tmp_path / "b", method="dense", init=first.best, epochs=2, era=None)
    again = load(run.last)
    assert digest(again.masks) == digest(masks)
    assert all(not again.state[k][~m].count_nonzero() for k, m in masks.items())
    run, _ = run_of(tmp_path / "c", method="window", target=0.7, init=first.best)
    for key, mask in load(run.last).masks.items():
        assert not (mask & ~masks[key]).any()


def test_init_on_other_classes_starts_the_classifier_fresh(tmp_path):
    from tests.tiny import Net

    other = tmp_path / "other.pt"
    torch.save(Net(7).state_dict(), other)
    _, records = run_of(tmp_path / "a", init=other, epochs=1, era="0:1")
    assert any("fc.weight, fc.bias start fresh" in note for note in records[0].notes)


def test_keep_dense_and_only(tmp_path):
    run, records = run_of(tmp_path, keep_dense=("fc", "conv1"))
    assert set(load(run.last).masks) == {"conv2.weight", "point.weight"}
    assert ("fc", "--keep-dense fc") in records[0].left_out
    run, _ = run_of(tmp_path, only=("conv*",))
    assert set(load(run.last).masks) == {"conv1.weight", "conv2.weight"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "1"], "--target 1 is out of range"),
        (["--target", "0.95"], "at most --target 0.888 leaves something everywhere"),
        (["--method", "windwo"], "Did you mean 'window'?"),
        (["--method", "window:max_nonzero=0"], "max_nonzero=0 is out of range"),
        (["--method", "ck", "--max-nonzero", "2"], "caps windows"),
        (["--era", "3:99"], "LAST is at most 15"),
        (["--era", "5"], "is not FIRST:LAST"),
        (["--keep-dense", "nothing*"], "matches no prunable layer"),
        (["--optimizer", "sdg"], "Did you mean 'sgd'?"),
        (["--recipe", "imagenet"], "unknown recipe"),
        (["--batch-size", "0"], "--batch-size 0 is out of range"),
        (["--momentum", "1.5"], "--momentum 1.5"),
        (["--betas", "0.9"], "two numbers"),
        (["--lr-drops", "a,b"], "is no number in a list"),
        (["--device", "cuda:9"], "--device 'cuda:9'"),
        (["--device", "tpu9"], "no torch device"),
        (["--data", "no/such/place"], "there is no no/such/place"),
        (["--resume", "no/such/run"], "no/such/run"),
        (["--accumulate", "100000"], "--accumulate"),
    ],
)
def test_bad_options_get_one_line_and_leave_nothing_behind(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--device", "cpu", "--model", "resnet20", *options]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and error.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--method", "window", "--target", "0.6", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "178,936 of 268,336" in out or "of 268,336 prunable weights go" in out
    assert "6/9 of a window" in out and "epoch 9: target 0.6 reached" in out
    assert not list(tmp_path.iterdir())


def test_eliminate_writes_a_network_that_gives_the_same_answers(tmp_path):
    from tests.tiny import Net

    run, records = run_of(
        tmp_path, method="ck", target=0.9, keep_dense=("fc", "conv1"), eliminate=True, epochs=2, era="0:1"
    )
    before, after = load(run.best), load(run.eliminated)
    assert any("eliminated" in note for note in records[-1].notes)
    nets = []
    for checkpoint in (before, after):
        net = Net(10).eval()
        net.load_state_dict(checkpoint.state)
        nets.append(net)
    images = torch.rand(8, 3, 16, 16)
    torch.testing.assert_close(nets[0](images), nets[1](images), rtol=1e-4, atol=1e-5)


def test_adversarial_training_reports_robust_accuracy(tmp_path):
    run, _ = run_of(tmp_path, adversarial="fgsm:eps=8/255", epochs=2, era="0:1", target=0.5)
    rows = run.read_metrics()
    assert all(0 <= row["robust_top1"] <= row["val_top1"] + 0.05 for row in rows)


def test_one_graph_serves_the_whole_run_era_and_all(tmp_path, monkeypatch):
    counters = pytest.importorskip("torch._dynamo.utils").counters
    counters.clear()
    compiled = partial(torch.compile, backend="eager")  # what is asked is how often, not how fast
    monkeypatch.setattr(torch, "compile", compiled)
    run, _ = run_of(tmp_path, compile=True, epochs=4)
    assert run.read_metrics()[-1]["sparsity_prunable"] > 0.5
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_cuda_graphs_are_for_cuda(tmp_path, capsys):
    assert main(["train", *OPTIONS, "--cuda-graphs", "--out", str(tmp_path)]) == 2
    assert "--cuda-graphs is for CUDA, and this runs on cpu" in capsys.readouterr().err


def test_what_a_finished_run_says_is_true_of_its_best_checkpoint(tmp_path):
    run, records = run_of(tmp_path, name="a")
    rows = run.metrics_path.read_text().splitlines()
    run.metrics_path.write_text("\n".join(rows[:-2]) + "\n")  # the last epochs are lost
    again = list(train(TrainRequest(**TINY | {"resume": run.path, "out": tmp_path}), MODEL_GIVEN))[-1]
    assert (again.val_top1, again.sparsity_prunable) == (records[-1].val_top1, records[-1].sparsity_prunable)
    assert load(run.last).meta.values["request"]["name"] == "a"


def test_a_finished_checkpoint_away_from_its_run_leaves_no_folder(tmp_path):
    run, _ = run_of(tmp_path, name="a")
    copy = tmp_path / "elsewhere" / "x.pt"
    copy.parent.mkdir()
    copy.write_bytes(run.last.read_bytes())
    with pytest.raises(BadOption, match=r"has trained all its 4 epochs.*more --epochs"):
        list(train(TrainRequest(**TINY | {"resume": copy, "out": tmp_path / "new"}), MODEL_GIVEN | {"out"}))
    assert not (tmp_path / "new").exists()
