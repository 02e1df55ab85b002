"""Two processes under torchrun: stopped, killed, started again; nothing lost, and the cause told."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.run import Run
from tests.helpers.together import together

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

OPTIONS = [
    *("train", "--model", "tests.tiny:net", "--limit-train", "640", "--limit-val", "64", "--batch-size", "32"),
    *("--device", "cpu", "--workers", "0", "--name", "a", "--method", "ck", "--era", "1:4", "--resume", "auto"),
]


def torchrun(folder: Path, *arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return subprocess.Popen(
        [sys.executable, "-m", *start, "-m", "starfire_cli", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )


def wait_for(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError("the run ended too early:\n" + "".join(seen))


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, in order of ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in map(int, children):
        place = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())
        if place:
            found[int(place.group(1))] = child
    return [found[rank] for rank in sorted(found)]


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc")


def as_two(folder: Path, epochs: int) -> None:
    """The same command in two forked processes, which saves the seconds that torchrun takes to start."""

    def main_there() -> int:
        os.chdir(folder)
        return main([*OPTIONS, "--epochs", str(epochs), "--quiet"])

    folder.mkdir(exist_ok=True)
    assert together(2, main_there) == [0, 0]


@pytest.mark.slow
def test_sigterm_is_one_save_and_the_same_command_goes_on_to_the_bit(tmp_path: Path) -> None:
    process = torchrun(tmp_path / "parts", *OPTIONS, "--epochs", "6")
    wait_for(process, "epoch 2/")
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert rest.count("saved. To go on:") == 1 and "terminated (SIGTERM)" in rest
    run = Run(tmp_path / "parts/runs/a")
    stopped = load(run.last, training=True)
    assert stopped.training is not None and 40 <= stopped.training["position"]["step"] < 120
    as_two(tmp_path / "parts", 6)
    as_two(tmp_path / "whole", 6)
    parts, whole = (load(tmp_path / name / "runs/a/last.pt").state for name in ("parts", "whole"))
    assert all(torch.equal(value, whole[key]) for key, value in parts.items())
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2, 3, 4, 5, 6]


def kill_one(process: subprocess.Popen[str], rank: int, run: Run) -> None:
    """Kill a rank: the job ends soon, says which and how, and what is on the disk is whole."""
    os.kill(ranks_of(process)[rank], signal.SIGKILL)
    killed = time.monotonic()
    rest, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - killed < 30, "the job should end within seconds"
    cause = rest[rest.index("Root Cause") :]
    assert f"rank      : {rank} " in cause and "SIGKILL" in cause
    for path in (run.last, run.best):
        load(path, training=True)


def check_finished(run: Run, epochs: int) -> None:
    rows = run.read_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1)) and rows[-1]["step"] == 20 * epochs
    assert {path.name for path in run.path.iterdir()} == {"config.json", "metrics.jsonl", "last.pt", "best.pt"}


@linux
@pytest.mark.slow
def test_a_rank_killed_ends_the_job_with_the_cause_and_the_next_start_goes_on(tmp_path: Path) -> None:
    process = torchrun(tmp_path, *OPTIONS, "--epochs", "100", "--save-every", "3")
    wait_for(process, "epoch 1/")
    time.sleep(random.Random().uniform(0, 0.5))
    run = Run(tmp_path / "runs/a")
    kill_one(process, 1, run)
    epochs = load(run.last).meta.values["metrics"]["epoch"] + 2
    as_two(tmp_path, epochs)
    check_finished(run, epochs)


@linux
@pytest.mark.slow
def test_a_rank_killed_again_and_again(tmp_path: Path) -> None:
    draw = random.Random(1)
    run = Run(tmp_path / "runs/a")
    command = (*OPTIONS, "--epochs", "80", "--save-every", "3")
    process = torchrun(tmp_path, *command)
    wait_for(process, "epoch 1/")
    for _ in range(12):
        time.sleep(draw.uniform(0, 1.5))
        kill_one(process, draw.randrange(2), run)
        process = torchrun(tmp_path, *command)
        wait_for(process, "going on in")
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 0, rest
    check_finished(run, 80)


@pytest.mark.slow
def test_torchruns_own_restart_goes_on_where_the_last_checkpoint_is(tmp_path: Path) -> None:
    process = torchrun(tmp_path, *OPTIONS, "--epochs", "12", restarts=1)
    wait_for(process, "epoch 3/")
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 0, rest
    assert "going on in runs/a" in rest
    assert [row["epoch"] for row in Run(tmp_path / "runs/a").read_metrics()] == list(range(1, 13))


@pytest.mark.slow
def test_an_error_of_one_rank_is_torchruns_root_cause(tmp_path: Path) -> None:
    """The loss of the second rank explodes: it says so, torchrun's report says so, nothing bad is saved."""
    options = [*OPTIONS[:1], "--model", "tests.tiny:explodes_on_the_second", *OPTIONS[3:], "--save-every", "1"]
    process = torchrun(tmp_path, *options, "--epochs", "8")
    rest, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "error: rank 1 of 2: the loss became NaN or inf" in rest
    cause = rest[rest.index("Root Cause") :]
    assert "rank      : 1 " in cause and "the loss became NaN or inf" in cause
    assert all(value.isfinite().all() for value in load(tmp_path / "runs/a/last.pt").state.values())


@pytest.mark.slow
def test_other_commands_and_wrong_options_say_one_line(tmp_path: Path) -> None:
    for arguments, words in (
        (("inspect", "x.pt"), "starfire inspect runs in one process, and torchrun has started 2"),
        ((*OPTIONS, "--method", "windwo"), "Did you mean 'window'?"),
        ((*OPTIONS, "--nonsense"), "--nonsense"),
    ):
        process = torchrun(tmp_path, *arguments)
        rest, _ = process.communicate(timeout=120)
        assert process.returncode != 0
        assert len([line for line in rest.splitlines() if line.startswith("error: ") and words in line]) == 1
