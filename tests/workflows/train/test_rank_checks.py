"""Ranks that were started differently, see other data or lose one of them say so within seconds; none waits."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from starfire_cli.data.digest import of_pixels
from tests.helpers.data_layouts import picture, train_and_val
from tests.helpers.together import run, together

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ONE_STEP: dict[str, Any] = {"max_steps": 1, "method": "ck"}


def differently(out: Path, more: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What two ranks say where the second has other settings."""

    def one() -> str:
        return run(out, **(more | second if os.environ["RANK"] == "1" else more))[0]

    return together(2, one)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"seed": 1}, "--seed: 0 on rank 0 and 1 on rank 1"),
        ({"limit_train": 200, "skip_corrupt": True}, "--skip-corrupt: False on rank 0 and True on rank 1"),
    ],
)
def test_options_that_differ_are_named_on_every_rank(tmp_path: Path, second: dict[str, Any], words: str) -> None:
    found = differently(tmp_path / "runs", ONE_STEP, second)
    assert found[0] == found[1] and words in found[0] and found[0].startswith("BadOption: the 2 processes")
    assert not (tmp_path / "runs").exists()


def fewer(folder: Path) -> None:
    (folder / "train/cat/000.png").unlink()


def repainted(folder: Path) -> None:
    picture(777, 120, 120).resize((120, 120)).save(folder / "train/cat/000.png")


def exchanged(folder: Path) -> None:
    """As many images of the same names in each class, but two have changed sides."""
    cat, dog = folder / "train/cat/003.png", folder / "train/dog/003.png"
    content = cat.read_bytes()
    cat.write_bytes(dog.read_bytes())
    dog.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "side", "words"),
    [
        (fewer, 120, "training images: 20 on rank 0 and 19 on rank 1"),
        (repainted, 120, "content of the training images"),
        (exchanged, 20, "pixels of the training images"),
    ],
)
def test_other_data_are_named_on_every_rank(
    tmp_path: Path, change: Callable[[Path], None], side: int, words: str
) -> None:
    for name in "ab":
        train_and_val(tmp_path / name, size=(side, side))
    more = ONE_STEP | {"data": str(tmp_path / "a"), "limit_train": None, "limit_val": None, "batch_size": 4}
    more |= {"image_size": 32, "epochs": 1, "era": "0:1", "model": "tests.tiny:net"}
    if change is fewer:  # paths alone are no difference
        found = differently(tmp_path / "runs", more, {"data": str(tmp_path / "b")})
        assert found == ["TrainingPlan Started Stopped"] * 2
    change(tmp_path / "b")
    found = differently(tmp_path / "bad", more, {"data": str(tmp_path / "b")})
    assert found[0] == found[1] and words in found[0] and "do not see the same data" in found[0]
    assert not (tmp_path / "bad").exists()


def test_other_numbers_of_batches_never_wait_whatever_was_compared(tmp_path: Path) -> None:
    def unseen(out: Path) -> str:
        from starfire_cli.workflows.train import rank_checks
        from starfire_cli.workflows.train import resume as resuming

        resuming.check_requests = rank_checks.check_requests = lambda request, ranks: None  # type: ignore[assignment]
        resuming.check_sessions = lambda session, ranks: None  # type: ignore[assignment]
        return run(out, limit_train=322 if os.environ["RANK"] == "0" else 128)[0]

    found = together(2, unseen, tmp_path / "runs")
    assert found[0] == found[1] and "rank 1 has other numbers of batches" in found[0]


def test_every_image_counts_in_a_digest() -> None:
    some = torch.Generator().manual_seed(0)
    images = torch.randint(256, (700, 3, 32, 32), dtype=torch.uint8, generator=some)  # 2.2 MB: a sample is taken
    labels = torch.arange(700)
    before = of_pixels(images, labels)
    for number in (0, 123, 699):
        other = images.clone()
        other[number] = 255 - other[number]
        assert of_pixels(other, labels)["pixels"] != before["pixels"]
    assert of_pixels(images.flip(0), labels)["pixels"] != before["pixels"]
    assert of_pixels(images, labels.flip(0))["labels"] != before["labels"]


@pytest.mark.parametrize(("where", "victim"), [("open_data", 0), ("save", 1)])
def test_a_killed_rank_ends_the_other(tmp_path: Path, where: str, victim: int) -> None:
    """The other one waits for it, or is in no collective and would go on for a minute: it names who is gone."""

    def one() -> str:
        from starfire_cli.distributed import lifeline
        from starfire_cli.workflows.train import epoch_end, training_data

        lifeline.GRACE = 0.2
        log = os.open(tmp_path / f"stderr{os.environ['RANK']}", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 2)
        sys.stderr = os.fdopen(log, "w", buffering=1)  # in place of what pytest put there

        def stuck(*given: object, **more: object) -> object:
            if os.environ["RANK"] == str(victim):
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
            raise AssertionError

        if where == "open_data":
            training_data.open_data = stuck  # type: ignore[assignment]
        else:
            epoch_end.save = stuck  # type: ignore[assignment]
        return run(tmp_path / "runs", batch_size=322, epochs=1, era="0:1")[0]

    began = time.monotonic()
    found = together(2, one)
    assert found[victim] == f"exit code {-signal.SIGKILL}"
    assert time.monotonic() - began < 30
    said = (tmp_path / f"stderr{1 - victim}").read_text()
    assert f"rank {victim} has ended without a word" in said
    if where == "save":  # in no collective, so that only its end helps
        assert found[1 - victim] == "exit code 1" and f"error: rank {1 - victim} of 2: " in said
    else:
        assert found[1 - victim].startswith("LostRank: ")
