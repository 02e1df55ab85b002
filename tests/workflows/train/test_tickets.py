"""Lottery tickets: the rounds of one run beside the algorithm's literal loop, resumed anywhere to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run
from starfire_cli.models import build_model
from starfire_cli.pruning.masks import digest
from starfire_cli.records.train import EpochRecord, Finished, Record, Started, Stopped
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.resume import open_session
from starfire_cli.workflows.train.rewinding import begin_round
from tests.helpers.together import run as run_together

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
# Five steps an epoch, ten a round, three rounds: 1, 0.8 and 0.5 of the weights live.
TINY: dict[str, Any] = {
    "model": "tests.tiny:net",
    "limit_train": 320,
    "limit_val": 50,
    "batch_size": 64,
    "epochs": 2,
    "target": 0.5,
    "method": "lottery:rounds=2",
    "workers": 0,
}


def trained(out: Path, **options: Any) -> tuple[Run, list[Record]]:
    """A run with the name of its folder, and its records."""
    request = TrainRequest(**{**TINY, **options}, out=out.parent, name=out.name)
    records = list(train(request, frozenset(options)))
    return Run(out), records


def resumed(run: Run, **options: Any) -> list[Record]:
    request = TrainRequest(model="tests.tiny:net", resume=run.path, workers=0, **options)
    return list(train(request, frozenset({"model", "workers", *options})))


def checkpoint(path: Path) -> Checkpoint:
    return load(path, training=True)


State = dict[str, torch.Tensor]


def literal_tickets(ends: list[State], keys: list[str], initial: State) -> list[tuple[State, State]]:
    """(masks, weights) that the second and third round begin with, by the paper's loop over single weights.

    `ends` are what the rounds were trained to; nothing of the masks they had is looked at.
    """
    alive = {key: [True] * initial[key].numel() for key in keys}
    total = sum(map(len, alive.values()))
    begins = []
    for end, goes in zip(ends, (0.2, 0.5), strict=False):
        weakest = sorted(
            (abs(w), k, i) for k, key in enumerate(keys) for i, w in enumerate(end[key].reshape(-1).tolist())
        )
        due, dead = math.ceil(total * goes - 1e-6), sum(not x for key in keys for x in alive[key])
        for _, k, i in weakest:
            if dead == due:
                break
            if alive[keys[k]][i] and sum(alive[keys[k]]) > 1:
                alive[keys[k]][i] = False
                dead += 1
        masks = {key: torch.tensor(alive[key]).reshape(initial[key].shape) for key in keys}
        begins.append((masks, {key: torch.where(masks[key], initial[key], 0.0) for key in keys}))
    return begins


@pytest.mark.parametrize(("at", "step"), [("0", 0), ("3", 3)])
def test_each_round_begins_as_the_papers_loop_has_it(tmp_path: Path, at: str, step: int) -> None:
    run, _ = trained(tmp_path / "run", method=f"lottery:rounds=2,rewind_at={at}", ema=0.9 if step == 3 else None)
    ends = [checkpoint(run.round_end(number)) for number in (1, 2, 3)]
    raw = [(end.training or {}).get("raw", end.state) for end in ends]
    if step:  # what another run has trained to by then
        other, _ = trained(tmp_path / "other", method="dense", max_steps=step)
        before = checkpoint(other.last).state
    else:
        torch.manual_seed(0)
        before = build_model("tests.tiny:net", num_classes=10, image_size=16).state_dict()
    kept = load(run.rewind).state
    assert all(torch.equal(value, kept[key]) for key, value in before.items())
    dead = []
    for number, (masks, weights) in enumerate(literal_tickets(raw, list(ends[0].masks or {}), before), 2):
        end = ends[number - 1].masks
        assert end is not None and all(torch.equal(mask, end[key]) for key, mask in masks.items())
        session = open_session(
            TrainRequest(model="tests.tiny:net", resume=run.round_end(number - 1)), frozenset({"model"})
        )
        begin_round(session)
        assert session.position.step == (number - 1) * 10 + step
        assert not session.optimisation.optimizer.state
        for net in session.nets:  # and the average
            for key, value in net.state_dict().items():
                assert torch.equal(value, weights.get(key, before[key])), key
        dead.append(sum(int((~mask).sum()) for mask in masks.values()))
    total = sum(mask.numel() for mask in (ends[0].masks or {}).values())
    assert dead == [math.ceil(total * 0.2 - 1e-6), math.ceil(total / 2)]


def test_epochs_count_on_and_best_is_of_the_last_round(tmp_path: Path) -> None:
    run, records = trained(tmp_path / "run", method="lottery:rounds=2,rewind_at=1.4ep")
    started = next(r for r in records if isinstance(r, Started))
    assert (started.rounds, started.epochs, started.steps) == (3, 6, 30)
    assert "3 rounds of training" in " ".join(started.notes) and "--epochs 2 is the length of one" in str(started.notes)
    epochs = [r for r in records if isinstance(r, EpochRecord)]
    # Rounds 2 and 3 begin at step 7 of 10, in their second epoch.
    assert [(r.round, r.epoch, r.step) for r in epochs] == [(1, 1, 5), (1, 2, 10), (2, 4, 20), (3, 6, 30)]
    assert [r.sparsity_prunable for r in epochs] == pytest.approx([0, 0, 0.2, 0.5], abs=1e-3)
    assert [r.threshold for r in epochs] == pytest.approx([0, 0, 0.2, 0.5])
    assert epochs[1].lr == epochs[2].lr == epochs[3].lr, "the schedule is the first round's"
    assert isinstance(records[-1], Finished) and records[-1].epochs == 4
    best = checkpoint(run.best)
    assert best.meta.metrics.epoch == 6 and run.read_metrics()[-1]["round"] == 3
    assert {path.name for path in run.path.glob("*.pt")} == {
        *("best.pt", "last.pt", "rewind.pt", "round-01.pt", "round-02.pt", "round-03.pt")
    }
    assert digest(load(run.round_end(3)).masks or {}) == digest(best.masks or {})


@pytest.mark.parametrize(
    ("spec", "more", "stops"),  # 10 and 20 are between two rounds
    [
        ("lottery:rounds=2,rewind_at=3", {"ema": 0.9, "amp": True}, (2, 15)),
        (
            "lottery:rounds=2,rewind=lr,control=reinit,pool=layer",
            {"optimizer": "adam", "compact_state": True},
            (20, 23),
        ),
        ("lottery:rounds=2,control=shuffle", {"lr_drops": (1.0,), "save_every": 4}, (10, 20)),
    ],
)
def test_a_run_resumed_in_and_between_rounds_ends_with_the_same_bits(
    tmp_path: Path, spec: str, more: dict[str, Any], stops: tuple[int, ...]
) -> None:
    whole, _ = trained(tmp_path / "whole", method=spec, **more)
    parts, records = trained(tmp_path / "parts", method=spec, **more, max_steps=stops[0])
    assert isinstance(records[-1], Stopped)
    for stop in (*stops[1:], None):
        records = resumed(parts, max_steps=stop)
    assert isinstance(records[-1], Finished)
    for name in ("last.pt", "best.pt", "round-02.pt", "round-03.pt"):
        one, two = checkpoint(whole.path / name), checkpoint(parts.path / name)
        assert digest(one.masks or {}) == digest(two.masks or {}), name
        assert all(torch.equal(value, two.state[key]) for key, value in one.state.items()), name
    drop = ("seconds", "elapsed_seconds", "mask_seconds", "images_per_second")
    rows = [[{k: v for k, v in row.items() if k not in drop} for row in run.read_metrics()] for run in (whole, parts)]
    assert rows[0] == rows[1]


def test_controls_change_the_last_round_alone(tmp_path: Path) -> None:
    ends = {}
    for control in ("none", "reinit", "shuffle"):
        run, _ = trained(tmp_path / control, method=f"lottery:rounds=2,control={control}", seed=1)
        ends[control] = [checkpoint(run.round_end(number)) for number in (1, 2, 3)]
    ticket = ends["none"]
    for control in ("reinit", "shuffle"):
        for number in (0, 1):
            assert all(torch.equal(v, ends[control][number].state[k]) for k, v in ticket[number].state.items())
    masks, same, other = (ends[control][2].masks or {} for control in ("none", "reinit", "shuffle"))
    assert digest(same) == digest(masks)
    assert {k: int(m.sum()) for k, m in other.items()} == {k: int(m.sum()) for k, m in masks.items()}
    overlap = float((other["conv2.weight"] & masks["conv2.weight"]).float().mean())
    density = float(masks["conv2.weight"].float().mean())
    assert overlap == pytest.approx(density**2, abs=0.06), "as many as chance has in common"
    assert not torch.equal(ends["reinit"][2].state["conv2.weight"], ticket[2].state["conv2.weight"])


def test_learning_rate_rewinding_keeps_the_weights(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "whole", method="lottery:rounds=2,rewind=lr", lr=1e-30, weight_decay=0.0)
    ends = [checkpoint(run.round_end(number)) for number in (1, 2, 3)]
    for key, mask in (ends[2].masks or {}).items():
        assert torch.equal(ends[2].state[key], torch.where(mask, ends[0].state[key], 0.0)), key
    assert not run.rewind.exists()


def test_two_ranks_find_one_ticket(tmp_path: Path) -> None:
    options = {k: v for k, v in TINY.items() if k != "workers"} | {
        "method": "lottery:rounds=1,rewind_at=3",
        "era": None,
    }
    assert run_together(tmp_path / "company", 2, **options, max_steps=15)[0].endswith("Stopped")
    (folder,) = (tmp_path / "company").iterdir()
    assert run_together(tmp_path / "company", 2, model="tests.tiny:net", resume=folder)[0].endswith("Finished")
    masks = checkpoint(Run(folder).last).masks or {}
    assert sum(int((~mask).sum()) for mask in masks.values()) == sum(mask.numel() for mask in masks.values()) // 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"target": 0.0}, "--target 0 is reached in 0 rounds; --target above 0, or --method dense"),
        ({"era": "0:1"}, "--era 0:1: --method lottery:rounds=2 prunes between rounds of --epochs each"),
        ({"method": "lottery:rounds=0"}, "rounds=0 is out of range; 1 or more"),
        ({"method": "lottery:rounds=9"}, "rounds=9 is more than it takes: .* the 4. pruning reaches --target 0.5"),
        ({"method": "lottery:p=1"}, "p=1 is out of range; .* above 0 and below 1"),
        ({"method": "lottery:p=0"}, "p=0 is out of range"),
        ({"method": "lottery:rewind=lrs"}, "rewind 'lrs'"),
        ({"method": "lottery:control=random"}, "control 'random'"),
        ({"method": "lottery:pool=window"}, "pool 'window'"),
        ({"method": "lottery:rewind_at=soon"}, "rewind_at=soon is neither a step, such as 500, nor an epoch"),
        ({"method": "lottery:rewind_at=-1"}, "rewind_at=-1 is neither"),
        ({"method": "lottery:rewind_at=2ep"}, "rewind_at=2ep is step 10, and a round has 10 .*at most rewind_at=9"),
        ({"method": "lottery:control=shuffle,rewind=lr"}, "control=shuffle moves the mask to weights that rewind=lr"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadOption, match=said) as caught:
        list(train(TrainRequest(**{**TINY, **more}, out=tmp_path, dry_run=True)))
    assert "\n" not in str(caught.value) and not [*tmp_path.iterdir()]


def test_a_resumed_run_keeps_its_rounds_and_needs_what_it_rewinds_to(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "run", max_steps=12)
    with pytest.raises(BadOption, match="--epochs 3: the rounds of --method lottery:rounds=2 have 2 epochs each"):
        resumed(run, epochs=3)
    own = run.rewind.read_bytes()
    run.rewind.write_bytes(own[: len(own) // 2])
    with pytest.raises(StarfireError, match=r"rewind\.pt"):
        resumed(run)
    other, _ = trained(tmp_path / "other", model="tests.tiny:plain", max_steps=1)
    run.rewind.write_bytes(other.rewind.read_bytes())
    with pytest.raises(StarfireError, match=r"rewind\.pt is of another network than the checkpoint beside it"):
        resumed(run)
    run.rewind.unlink()
    with pytest.raises(StarfireError, match=r"rewind\.pt, the weights that each round is set back to, is not there"):
        resumed(run)
