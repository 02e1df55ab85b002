"""The launcher of this process and the number of others: torchrun, srun, or nobody."""

from __future__ import annotations

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.errors import BadOption
from starfire_cli.runtime import World, first_host, pick_device, world

SRUN = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PTY_PORT", *SRUN):
        monkeypatch.delenv(name, raising=False)


def world_of(monkeypatch: pytest.MonkeyPatch, *variables: dict[str, str], without: tuple[str, ...] = ()) -> World:
    for name, value in {k: v for some in variables for k, v in some.items() if k not in without}.items():
        monkeypatch.setenv(name, value)
    return world()


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def test_alone() -> None:
    assert world() == World(rank=0, size=1, local_rank=0, launcher="", address="env://")


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = World(rank=3, size=4, local_rank=1, launcher="torchrun")
    assert world_of(monkeypatch, TORCHRUN) == expected
    assert world_of(monkeypatch, SRUN) == expected, "torchrun under srun: torchrun's variables count"


def test_srun_with_several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = world_of(monkeypatch, SRUN)
    assert (found.rank, found.size, found.local_rank, found.launcher) == (5, 8, 1, "srun")
    assert found.address.startswith("tcp://gpu07:")
    others = {world_of(monkeypatch, {"SLURM_STEP_ID": str(step)}).address for step in range(3)}
    assert len(others) == 3, "steps side by side on one machine do not meet"
    given = world_of(monkeypatch, {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert given.address == "tcp://10.0.0.1:29500"


@pytest.mark.parametrize(
    ("changed", "without"),
    [
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ()),  # srun -n1, or a shell in an allocation of eight
        ({"SLURM_PROCID": "0"}, ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID")),  # the batch script itself
        ({}, ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")),  # salloc's shell
        ({"SLURM_PTY_PORT": "4711", "SLURM_PROCID": "0"}, ()),  # srun -n8 --pty bash
        ({"RANK": "0", "WORLD_SIZE": "1"}, ()),  # eight runs of their own, said so
    ],
)
def test_slurm_where_one_process_stays_one(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], without: tuple[str, ...]
) -> None:
    assert world_of(monkeypatch, SRUN | changed, without=without).size == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[003-010,12],cpu1", "gpu003"),
        ("rack[1-2]node[01,04]-ib", "rack1node01-ib"),
        ("10.0.0.7,10.0.0.8", "10.0.0.7"),
    ],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadOption, match="RANK='x'"):
        world_of(monkeypatch, TORCHRUN, {"RANK": "x"})
    with pytest.raises(BadOption, match="rank 4 of 4"):
        world_of(monkeypatch, TORCHRUN, {"RANK": "4"})


def test_each_process_gets_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second = World(rank=3, size=4, local_rank=1, launcher="torchrun")
    third = World(rank=2, size=4, local_rank=2, launcher="torchrun")
    assert str(pick_device("auto", second)) == str(pick_device("cuda", second)) == "cuda:1"
    assert str(pick_device("cpu", second)) == "cpu"
    with pytest.raises(BadOption, match="process 3 of this machine has no CUDA device, torch sees 2"):
        pick_device("auto", third)
    with pytest.raises(BadOption, match="'cuda:1' cannot be that of all 4"):
        pick_device("cuda:1", second)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert str(pick_device("cuda", World(rank=2, size=4, local_rank=2, launcher="srun"))) == "cuda:0"


def test_other_commands_are_for_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world_of(monkeypatch, TORCHRUN, {"RANK": "0"})
    assert main(["inspect", "x.pt"]) == 2
    assert "starfire inspect runs in one process, and torchrun has started 4" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(["inspect", "x.pt"]) == 2
    assert capsys.readouterr().err == "", "one of them says so"
