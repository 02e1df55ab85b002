"""Networks that shrink while they train: the same run on several processes, stopped or not, and of use afterwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run
from starfire_cli.pruning.masks import digest
from starfire_cli.workflows.train.reconfigure import remove_channels
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.resume import open_session
from tests.helpers.together import run

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

MODEL = "tests.tiny:residual"
SHRINKING: dict[str, Any] = {
    "model": MODEL,
    "method": "prunetrain:strength=0.05,threshold=0.03,interval=1",
    "limit_train": 320,  # five steps an epoch
    "limit_val": 100,
    "device": "cpu",
    "workers": 0,
    "batch_size": 64,
    "epochs": 4,
    "lr": 0.1,
    "lr_schedule": "constant",
    "era": None,
}


def last(out: Path) -> Checkpoint:
    (folder,) = out.iterdir()
    return load(Run(folder).last, training=True)


def parameters(checkpoint: Checkpoint) -> int:
    return sum(value.numel() for key, value in checkpoint.state.items() if "running" not in key and "num" not in key)


def same_bits(a: Checkpoint, b: Checkpoint) -> None:
    assert digest(a.masks or {}) == digest(b.masks or {})
    assert a.meta.model.shrink == b.meta.model.shrink
    for one, other in ((a.state, b.state), (a.training or {}, b.training or {})):
        mine, theirs = list(tensors(one)), list(tensors(other))
        assert len(mine) == len(theirs) > 0
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item) if key != "rng" else ()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def width(checkpoint: Checkpoint) -> int:
    """Channels of all convolutions together."""
    return sum(len(value) for value in checkpoint.state.values() if value.ndim == 4)


@pytest.mark.parametrize(
    ("more", "stops"),  # at the end of an epoch, before channels go; after some have gone
    [
        ({"ema": 0.9, "norm_weight_decay": 0.0, "clip_grad": 5.0}, (10, 12)),
        ({"optimizer": "adam", "lr": 0.01, "accumulate": 2, "channels_last": False}, (19,)),
    ],
    ids=["sgd-ema", "adam"],
)
def test_a_run_that_was_stopped_goes_on_to_the_bit(
    tmp_path: Path, more: dict[str, Any], stops: tuple[int, ...]
) -> None:
    assert run(tmp_path / "whole", **SHRINKING | more)[0].endswith("Finished")
    whole = last(tmp_path / "whole")
    for stop in stops:
        out = tmp_path / str(stop)
        run(out, **SHRINKING | more, max_steps=stop)
        run(out, model=MODEL, resume=Path("auto"))
        same_bits(whole, last(out))
    assert width(whole) < 62 and whole.meta.model.shrink
    (folder,) = (tmp_path / "whole").iterdir()
    session = open_session(TrainRequest(resume=folder, model=MODEL), frozenset({"model"}))
    session.position.epoch -= 1
    assert remove_channels(session) is session  # nothing more goes where it was not measured for a signal
    rows = Run(folder).read_metrics()
    sizes = [row["parameters"] for row in rows]
    # Channels go after the last step of an epoch, which is the first whose images all met the larger network.
    for row, before in zip(rows[1:], rows, strict=False):
        assert row["train_macs"] == pytest.approx(320 * before["macs"]) or row["macs"] == before["macs"]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] == 6300
    sparsity = [row["sparsity_total"] for row in rows]
    assert sparsity == sorted(sparsity) and sparsity[-1] > 1 - sizes[-1] / 6300 - 1e-12


def test_two_ranks_cut_alike_and_learn_what_one_process_learns(tmp_path: Path) -> None:
    """Without BatchNorm, whose statistics are of a rank's own images."""
    more = SHRINKING | {"model": "tests.tiny:plain", "method": "prunetrain:strength=0.2,threshold=0.03,interval=1"}
    assert run(tmp_path / "alone", **more)[0].endswith("Finished")
    assert run(tmp_path / "company", 2, **more)[1].endswith("EpochRecord")
    alone, company = last(tmp_path / "alone"), last(tmp_path / "company")
    assert alone.meta.model.shrink == company.meta.model.shrink != {}
    assert digest(alone.masks or {}) == digest(company.masks or {})
    for key, value in alone.state.items():
        torch.testing.assert_close(value, company.state[key], rtol=1e-3, atol=1e-5)
    (folder,) = (tmp_path / "company").iterdir()
    sent = [row["gradient_bytes"] for row in Run(folder).read_metrics()]
    assert sent[-1] < sent[0]


@pytest.mark.slow
def test_two_ranks_go_on_to_the_bit(tmp_path: Path) -> None:
    more = SHRINKING | {"ema": 0.9}
    assert run(tmp_path / "whole", 2, **more)[1].endswith("EpochRecord")
    assert run(tmp_path / "parts", 2, **more, max_steps=12)[1].endswith("Stopped")
    run(tmp_path / "parts", 2, model=MODEL, resume=Path("auto"))
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert digest(whole.masks or {}) == digest(parts.masks or {}) and whole.meta.model.shrink == parts.meta.model.shrink
    assert all(torch.equal(value, parts.state[key]) for key, value in whole.state.items()) and width(whole) < 62


@pytest.mark.slow
def test_a_compiled_network_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    run(tmp_path / "plain", **SHRINKING)
    run(tmp_path / "compiled", **SHRINKING, compile=True)
    plain, compiled = last(tmp_path / "plain"), last(tmp_path / "compiled")
    assert plain.meta.model.shrink == compiled.meta.model.shrink != {}
    for key, value in plain.state.items():
        torch.testing.assert_close(value, compiled.state[key], rtol=1e-3, atol=1e-5)


def test_its_checkpoints_serve_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, **SHRINKING | {"name": "a"})
    checkpoint, how = str(tmp_path / "a" / "last.pt"), ["--model", MODEL]
    assert main(["inspect", checkpoint, *how]) == 0
    assert main(["attack", checkpoint, *how, "--attack", "fgsm", "--eps", "2/255", "--images", "20"]) == 0
    assert main(["compress", checkpoint, *how, "--out", str(tmp_path / "small.sfp")]) == 0
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "plot.png")]) == 0
    tuned = run(tmp_path / "tuned", model=MODEL, init=Path(checkpoint), method="dense", fc="dense", epochs=1, era="0:1")
    assert tuned[0].endswith("Finished")
    assert width(last(tmp_path / "tuned")) == width(load(Path(checkpoint)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "prunetrain:interval=0"], "interval=0 is out of range"),
        (["--method", "prunetrain:ratio=1"], "ratio=1 is out of range"),
        (["--method", "prunetrain", "--compact-state"], "--compact-state"),
        (["--method", "prunetrain", "--model", "tests.tiny:branching"], "cannot trace the model"),
        (["--method", "ssl:units=depth", "--model", "tests.tiny:plain"], "residual branches, and the network has none"),
        (["--method", "slimming", "--model", "tests.tiny:plain"], "the network has no BatchNorm"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    model = [] if "--model" in options else ["--model", MODEL]
    argv = ["train", *model, *options, "--limit-train", "64", "--limit-val", "10", "--out", str(tmp_path)]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_network_learns_the_digits_while_it_shrinks(tmp_path: Path) -> None:
    method = "prunetrain:strength=0.015,threshold=0.03,interval=2"
    all_images = {"limit_train": None, "limit_val": None, "era": None}
    run(tmp_path, model=MODEL, method=method, epochs=8, lr=0.1, **all_images)
    (folder,) = tmp_path.iterdir()
    rows = Run(folder).read_metrics()
    assert rows[0]["parameters"] == 6300 and rows[-1]["parameters"] < 6100
    assert rows[-1]["sparsity_total"] > 0.03 and rows[-1]["val_top1"] > 0.9
