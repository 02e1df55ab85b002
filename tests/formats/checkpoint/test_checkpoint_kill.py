"""A checkpoint is whole after its writer was killed at a random moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from starfire_cli.formats.checkpoint.file import load, save

ROOT = Path(__file__).parents[3]

# Saves over and over; each save holds one number everywhere, so that a mixture of two would show.
WRITER = """
import sys, torch
from pathlib import Path
from starfire_cli.formats.checkpoint.file import save
path, megabytes = Path(sys.argv[1]), int(sys.argv[2])
number = 0
while True:
    state = {f"w{i}": torch.full((megabytes * 25_000,), float(number)) for i in range(10)}
    save(path, state=state, masks={"w0": torch.ones(megabytes * 25_000, dtype=torch.bool)}, meta={"number": number})
    number += 1
    print(number, flush=True)
"""


def kill_while_saving(path: Path, megabytes: int, delay: float) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(megabytes)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()


def check(path: Path) -> None:
    found = load(path)
    assert len(found.state) == 10
    assert all(bool((tensor == found.meta.values["number"]).all()) for tensor in found.state.values())


def temporaries(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.parametrize("delay", [0.01, 0.05])
def test_killed_while_saving(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "last.pt"
    kill_while_saving(path, 4, delay)
    check(path)
    save(path, state={"w": torch.ones(1)}, masks=None, meta={})
    assert temporaries(tmp_path) == []


@pytest.mark.slow
def test_killed_thirty_times_while_saving(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    chance = random.Random(0)
    left = 0
    for _ in range(30):
        kill_while_saving(path, 20, chance.uniform(0, 0.5))
        check(path)
        left += len(temporaries(tmp_path)) > 0
        assert len(temporaries(tmp_path)) <= 1, "the next writer removes what the last one left"
    assert left > 5, "too few kills fell into a save for this test to say anything"
