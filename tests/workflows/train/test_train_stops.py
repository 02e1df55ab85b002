"""Runs that are stopped, terminated or killed: another process, real signals, nothing lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from starfire_cli import cli
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.run import Run

RESUME = ["train", "--resume", "runs/a", "--model", "tests.tiny:net"]
OPTIONS = [
    "train",
    "--model",
    "tests.tiny:net",
    "--limit-train",
    "640",
    "--limit-val",
    "64",
    "--batch-size",
    "32",
    "--device",
    "cpu",
    "--workers",
    "0",
    "--name",
    "a",
    "--method",
    "ck",
    "--era",
    "1:4",
    "--optimizer",
    "adam",
    "--lr",
    "0.001",
]


def start(folder: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "starfire_cli", *OPTIONS, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def run_here(folder: Path, *arguments: str) -> None:
    """Run a command in this process: what it finds on the disk matters, and another start would take seconds."""
    with contextlib.chdir(folder):
        assert cli.main([*arguments]) == 0


def wait_for_epoch(process: subprocess.Popen, epoch: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"epoch {epoch}/"):
            return
    raise AssertionError("the run ended too early")


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_saves_says_how_to_go_on_and_loses_no_bit(tmp_path, number, code):
    process = start(tmp_path, "--epochs", "4")
    wait_for_epoch(process, 2)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == code
    assert "saved. To go on:\nstarfire train --resume runs/a/last.pt --model tests.tiny:net" in rest
    stopped = load(tmp_path / "runs/a/last.pt", training=True)
    assert 40 <= stopped.training["position"]["step"] < 80
    run_here(tmp_path, *RESUME)
    whole = tmp_path / "whole"
    whole.mkdir()
    run_here(whole, *OPTIONS, "--epochs", "4")
    a, b = (load(folder / "runs/a/last.pt") for folder in (tmp_path, whole))
    assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)


def kill_and_resume(folder: Path, kills: int, seed: int, epochs: int, longest: float) -> None:
    """Kill a run so often, each time after `longest` seconds at most; it has steps for more than that."""
    draw = random.Random(seed)
    process = start(folder, "--epochs", str(epochs), "--save-every", "3")  # saving nearly all the time
    wait_for_epoch(process, 1)
    for _ in range(kills):
        time.sleep(draw.uniform(0.05, longest))
        process.kill()
        process.communicate(timeout=60)
        for name in ("last.pt", "best.pt"):
            load(folder / "runs/a" / name, training=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "starfire_cli", *RESUME],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            assert not line.startswith("error"), line
            if line.startswith("going on in"):
                break
    process.kill()
    process.communicate(timeout=60)
    run_here(folder, *RESUME, "--save-every", "1000")
    rows = Run(folder / "runs/a").read_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    assert rows[-1]["step"] == 20 * epochs
    assert not [
        p for p in (folder / "runs/a").iterdir() if p.name not in ("config.json", "metrics.jsonl", "last.pt", "best.pt")
    ]


def test_kill_9(tmp_path):
    kill_and_resume(tmp_path, kills=1, seed=0, epochs=8, longest=0.3)


@pytest.mark.slow
def test_kill_9_twenty_times(tmp_path):
    kill_and_resume(tmp_path, kills=20, seed=1, epochs=40, longest=2.0)
