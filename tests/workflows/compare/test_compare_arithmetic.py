"""Arithmetic of a comparison: paired intervals, FLOPs, epochs of equal cost, and how its options are read."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest

from starfire_cli.commands.train_options import parse_train_options
from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.run import Run
from starfire_cli.records.compare import CompareCell
from starfire_cli.records.flops import inference_flops, training_flops
from starfire_cli.workflows.compare.cells import BaseRequest, group_cells, in_order
from starfire_cli.workflows.compare.flops import equal_epochs
from starfire_cli.workflows.compare.intervals import paired_difference
from starfire_cli.workflows.compare.request import CompareRequest, parse_methods, parse_seeds, parse_targets
from starfire_cli.workflows.compare.settings import check_same, method_specs, untargeted
from starfire_cli.workflows.compare.trial import training_cost, try_request
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest

TINY = {"model": "tests.tiny:net", "limit_train": 320, "limit_val": 50, "device": "cpu", "workers": 0}

# Of tests.tiny:net on 16 px, counted by hand: every weight of conv1 is used at 16 x 16 places, of conv2 and point at
# 8 x 8, of fc once.
USES = {"conv1.weight": 256, "conv2.weight": 64, "point.weight": 64, "fc.weight": 1}
DENSE = 256 * 8 * 3 * 9 + 64 * 12 * 8 * 9 + 64 * 12 * 12 + 12 * 10


@pytest.mark.parametrize(
    ("apart", "quantile"),  # from a table of Student's distribution, two-sided 95 %
    [([0.01, 0.03], 12.7062), ([0.01, 0.02, 0.06], 4.30265), ([0.0, 0.01, -0.02, 0.03, 0.05], 2.77645)],
)
def test_a_paired_interval_is_student_s(apart: list[float], quantile: float) -> None:
    dense = {seed: 0.9 - 0.1 * seed for seed in range(len(apart))}
    found = paired_difference({seed: dense[seed] + x for seed, x in enumerate(apart)}, dense)
    mean = sum(apart) / len(apart)
    spread = math.sqrt(sum((x - mean) ** 2 for x in apart) / (len(apart) - 1))
    assert found.mean == pytest.approx(mean) and found.seeds == len(apart)
    assert found.half_width == pytest.approx(quantile * spread / math.sqrt(len(apart)), rel=1e-5)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired_difference({0: 0.5, 1: 0.7, 5: 0.1}, {1: 0.6, 2: 0.9})
    assert found.mean == pytest.approx(0.1) and found.half_width is None and found.seeds == 1
    assert paired_difference({0: 0.5}, {}) is None
    assert paired_difference({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.25}).half_width == 0


@pytest.mark.parametrize(("method", "epochs", "era"), [("dense", 2, None), ("ck", 3, "1:2")])
def test_flops_are_counted_from_live_weights(tmp_path: Path, method: str, epochs: int, era: str | None) -> None:
    request = TrainRequest(**TINY, method=method, target=0.5, epochs=epochs, era=era, out=tmp_path, name="a")
    list(train(request, frozenset(TINY)))
    run = Run(tmp_path / "a")
    rows, masks = run.read_metrics(), load(run.last).masks or {}
    left = sum(USES[key] * int(mask.sum()) for key, mask in masks.items())
    left += DENSE - sum(USES[key] * mask.numel() for key, mask in masks.items())
    assert (left == DENSE) == (method == "dense")
    assert inference_flops(rows) == 2 * left
    assert rows[0]["train_macs"] == 320 * DENSE and rows[-1]["train_macs"] == 320 * left
    if method == "dense":
        assert training_flops(rows) == 6 * 320 * DENSE * epochs
    else:
        # Five steps, of which the first is dense, and a fifth of the way down after each.
        steps = [DENSE - step / 5 * (DENSE - left) for step in range(5)]
        assert rows[1]["train_macs"] == pytest.approx(320 * sum(steps) / 5, rel=0.03)
        assert training_flops(rows) == 6 * sum(row["train_macs"] for row in rows)
    assert training_flops([*rows, {"epoch": 9}]) is None and training_flops([]) is None


def test_a_step_that_reads_gradients_of_dead_weights_counts_them(tmp_path: Path) -> None:
    request = TrainRequest(**TINY, method="rigl:every=2", target=0.5, epochs=2, era="0:1", out=tmp_path, name="a")
    list(train(request, frozenset(TINY)))
    run = Run(tmp_path / "a")
    masks = load(run.last).masks or {}
    left = DENSE - sum(USES[key] * int((~mask).sum()) for key, mask in masks.items())
    first, second = run.read_metrics()
    # RigL is sparse from the start, in each layer as in the end; of the first epoch's five steps two read gradients.
    assert second["train_macs"] == 320 * left
    assert first["train_macs"] == pytest.approx(320 * (left + (DENSE - left) / 3 * 2 / 5), rel=1e-6)


def test_flops_are_the_same_after_a_stop_in_an_epoch(tmp_path: Path) -> None:
    options = {**TINY, "method": "ck", "target": 0.5, "epochs": 2, "era": "0:2", "out": tmp_path, "batch_size": 32}
    for name, stop in (("whole", None), ("halves", 13)):
        list(train(TrainRequest(**options, name=name, max_steps=stop), frozenset(TINY)))
    list(train(TrainRequest(**options, name="halves", resume=tmp_path / "halves"), frozenset(TINY)))
    whole, halves = (
        [(row["macs"], row["train_macs"]) for row in Run(tmp_path / name).read_metrics()]
        for name in ("whole", "halves")
    )
    assert whole == halves and len(whole) == 2


def test_a_pilot_predicts_what_training_costs(tmp_path: Path) -> None:
    request = TrainRequest(**TINY, method="ck", target=0.5, epochs=4, batch_size=32, out=tmp_path, name="a")
    given = frozenset({*TINY, "epochs", "batch_size"})
    trial = try_request(request, given)
    assert (trial.epochs, trial.steps_per_epoch, trial.macs) == (4, 10, DENSE)
    assert not list(tmp_path.iterdir())
    predicted = training_cost(request, given, trial)
    list(train(request, given))
    spent = training_flops(Run(tmp_path / "a").read_metrics())
    assert predicted == pytest.approx(spent / (6 * 320 * DENSE * 4), rel=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_equal_epochs_spend_what_the_cheapest_spends() -> None:
    assert equal_epochs({"dense": 1.0, "a": 0.5, "b": 0.25}, 40) == {"dense": 10, "a": 20, "b": 40}
    assert equal_epochs({"dense": 1.0, "a": 0.01}, 10) == {"dense": 1, "a": 10}


@pytest.mark.parametrize(
    ("texts", "specs"),
    [
        (("window,ck,dense",), ("window", "ck", "dense")),
        (("window;gmp:pool=global,every=50",), ("window", "gmp:pool=global,every=50")),
        (("gmp:pool=global, every=50,dense",), ("gmp:pool=global,every=50", "dense")),
        (("gmp,every=50",), ("gmp:every=50",)),
        (("mix:unit=RS,within=C", "ck,ck", ""), ("mix:unit=RS,within=C", "ck")),
    ],
)
def test_methods_are_read_as_they_are_written(texts: tuple[str, ...], specs: tuple[str, ...]) -> None:
    assert parse_methods(texts) == specs


@pytest.mark.parametrize("texts", [(), ("",), (",;",), ("every=50,ck",), ("ck;every=50",)])
def test_methods_that_are_none_are_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(BadOption, match="--methods"):
        parse_methods(texts)


def test_seeds_and_targets() -> None:
    assert parse_seeds("--seeds", "3") == (0, 1, 2)
    assert parse_seeds("--seeds", "4,0,4") == (4, 0)
    assert parse_seeds("--seeds", "7,") == (7,)
    assert parse_targets("--target", "0.6,0.8,0.6") == (0.6, 0.8)
    for parse, text in (
        *((parse_seeds, text) for text in ("0", "x", "1,-1", "1001", "1.5")),
        *((parse_targets, text) for text in ("1", "0", "-0.1", "0.5,a", "nan")),
    ):
        with pytest.raises(BadOption, match=text.rpartition(",")[2]):
            parse("--x", text)


def test_cells_come_seed_by_seed_and_have_names_of_folders() -> None:
    groups = group_cells(("dense", "a:x=1,y=b", "c"), (0.6, 0.8), (0, 3))
    assert [group.first.title for group in groups] == ["dense", "a:x=1,y=b 0.6", "c 0.6", "a:x=1,y=b 0.8", "c 0.8"]
    assert all(group.dense == groups[0].cells for group in groups[1:]) and groups[0].dense == ()
    names = [cell.name for cell in in_order(groups)]
    assert names[:2] == ["dense-s0", "a-x=1,y=b-t0.6-s0"] and names[5:6] == ["dense-s3"] and len(set(names)) == 10
    long = CompareCell(method="m:" + 300 * "x", target=0.5, seed=1).name
    assert len(long) <= 120 and long != CompareCell(method="m:" + 300 * "x", target=0.5, seed=2).name


def test_at_equal_flops_every_target_has_its_own_dense() -> None:
    epochs = {("dense", 0.6): 5, ("a", 0.6): 8, ("dense", 0.8): 4, ("a", 0.8): 8}
    groups = group_cells(("dense", "a"), (0.6, 0.8), (0,), epochs)
    assert [group.first.title for group in groups] == [
        *("dense, 5 epochs", "dense, 4 epochs", "a 0.6, 8 epochs", "a 0.8, 8 epochs"),
    ]
    assert [group.dense[0].epochs for group in groups[2:]] == [5, 4]


def test_a_method_without_a_target_is_trained_once() -> None:
    groups = group_cells(("dense", "a", "s"), (0.6, 0.8), (0, 1), untargeted={"s"})
    assert [group.first.title for group in groups] == ["dense", "a 0.6", "s", "a 0.8"]
    assert [cell.name for cell in groups[2].cells] == ["s-s0", "s-s1"] and groups[2].dense == groups[0].cells
    epochs = {("dense", 0.6): 5, ("s", 0.6): 6, ("dense", 0.8): 4, ("s", 0.8): 5}
    titles = [group.first.title for group in group_cells(("dense", "s"), (0.6, 0.8), (0,), epochs, {"s"})]
    assert titles == ["dense, 5 epochs", "dense, 4 epochs", "s, 6 epochs", "s, 5 epochs"]
    base = BaseRequest(request=TrainRequest(), given=frozenset())
    specs = ("dense", "ck", "narang", "narang:q=0.1", "slimming", "deep-compression", "deep-compression:s=1", "sss")
    assert untargeted(specs, base) == {"narang:q=0.1", "slimming", "deep-compression:s=1", "sss"}


@pytest.mark.parametrize("name", ["thinet", "lasso-channel", "pfa"])
def test_methods_that_only_compress_are_refused_with_what_would_work(name: str) -> None:
    base = BaseRequest(request=TrainRequest(), given=frozenset())
    with pytest.raises(
        BadOption, match=rf"--methods {name}: .*prune-mask CHECKPOINT --method {name}.*trains, with: .*ck"
    ):
        method_specs(CompareRequest(methods=(name,)), base)


def test_a_cell_s_request_is_what_train_would_be_asked() -> None:
    words = ["--fc", "block:n=2", "--lr", "0.05", "--no-nesterov", "--only", "conv*", "--only", "fc"]
    base = BaseRequest(*(), **dict(zip(("request", "given"), parse_train_options(words), strict=True)))
    base.check("flops")
    own, given = base.of_cell(CompareCell(method="ck", target=0.8, seed=3), Path("out"))
    assert (own.method, own.target, own.seed, own.fc, own.nesterov) == ("ck", 0.8, 3, "block:n=2", False)
    assert own.only == ("conv*", "fc") and {"method", "seed", "lr", "nesterov"} <= given
    assert parse_train_options(shlex.split(own.command)[2:])[0].as_config() == own.as_config()
    dense, _ = base.of_cell(CompareCell(method="dense", target=None, seed=3, epochs=7), Path("out"))
    assert (dense.fc, dense.epochs, dense.lr) == (TrainRequest.fc, 7, 0.05)


@pytest.mark.parametrize(
    ("words", "equal", "told"),
    [
        (["--method", "ck"], "epochs", "--methods"),
        (["--seed", "3"], "epochs", "--seeds"),
        (["--resume", "auto"], "epochs", "for one run"),
        (["--max-steps", "3"], "epochs", "for one run"),
        (["--era", "1:2"], "flops", "--equal flops"),
        (["--lr-drops", "3"], "flops", "--equal flops"),
    ],
)
def test_options_that_a_comparison_chooses_are_refused(words: list[str], equal: str, told: str) -> None:
    request, given = parse_train_options(words)
    with pytest.raises(BadOption, match=told):
        BaseRequest(request=request, given=given).check(equal)


def test_what_differs_is_named() -> None:
    old = {"methods": ["dense", "ck"], "seeds": [0, 1], "equal": "epochs", "epochs": 3, "lr": 0.1}
    check_same(old, old | {"methods": ["dense", "ck", "window"], "seeds": [0, 1, 2]}, Path("x"))
    for change, told in (
        ({"epochs": 4}, "--epochs 4 contradicts the comparison in x, which has 3"),
        ({"lr": None}, "no --lr contradicts the comparison in x, which has 0.1"),
        ({"batch_size": 8}, "--batch-size 8 contradicts the comparison in x, which has no --batch-size"),
        ({"methods": ["dense"]}, "--methods dense lacks ck"),
        ({"seeds": [0, 2]}, "--seeds 0,2 lacks 1"),
    ):
        with pytest.raises(BadOption, match=told):
            check_same(old, old | change, Path("x"))
    with pytest.raises(BadOption, match="--methods dense,ck,a contradicts"):
        check_same(old, old | {"methods": ["dense", "ck", "a"]}, Path("x"), growing=("seeds",))


@pytest.mark.parametrize(("at", "cost"), [("0", 1 + 0.5), ("5", 1 + 0.25), ("1ep", 1 + 0.25)])
def test_lottery_tickets_cost_all_their_rounds(at: str, cost: float) -> None:
    """A dense round of two epochs, and one at half of each layer, which with late rewinding begins in its second."""
    method = f"lottery:rounds=1,pool=layer,rewind_at={at}"
    request = TrainRequest(**TINY, method=method, target=0.5, epochs=2, batch_size=64)  # type: ignore[arg-type]
    trial = try_request(request, frozenset({"model"}))
    assert trial.epochs == 2
    assert training_cost(request, frozenset({"model"}), trial) == pytest.approx(cost, abs=1e-3)
