"""Systems other than Linux: modules import and commands run without what only Linux, or only Unix, has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from starfire_cli.data.shards.spool import Spool
from starfire_cli.errors import StarfireError
from starfire_cli.formats import atomic
from starfire_cli.formats.checkpoint import torch_file
from starfire_cli.output import _wait_for_room
from starfire_cli.workflows.compare.memory import cores

# A process without what Windows and macOS lack. torch comes first, since it knows the system it was built for.
ELSEWHERE = """
import multiprocessing, os, pathlib, pkgutil, signal, sys
import torch, torchvision
for module in ("resource", "termios", "pwd", "grp"):
    sys.modules[module] = None
for name in ("fork", "getuid", "memfd_create", "posix_fadvise", "pread", "sched_getaffinity", "sysconf", "uname"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGPIPE"):
    delattr(signal, name)
multiprocessing.set_start_method("spawn", force=True)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""
IMPORTS = """
import importlib
sys.modules["fcntl"] = None  # macOS has it, and the lock of a run asks for it there
import starfire_cli
for module in pkgutil.walk_packages(starfire_cli.__path__, "starfire_cli."):
    if not any(part in module.name for part in ("integrations.", "triton", "kernels.gpu", "__main__")):
        importlib.import_module(module.name)
"""


def elsewhere(code: str, *arguments: str, cwd: Path) -> str:
    """What the code prints where there is nothing of Linux's own."""
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE + code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_modules_import(tmp_path: Path) -> None:
    elsewhere(IMPORTS, cwd=tmp_path)


def images(folder: Path) -> Path:
    for part, count in (("train", 6), ("val", 3)):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (120, 100, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


@pytest.mark.slow
def test_commands_run(tmp_path: Path) -> None:
    images(tmp_path / "images")
    run = "from starfire_cli.cli import main\nif __name__ == '__main__': sys.exit(main(sys.argv[1:]))\n"
    for command in (
        "train --data images --model resnet20 --image-size 32 --epochs 1 --batch-size 4 --workers 2 --name one",
        "inspect",
        "compress",
        "attack --eps 0,0.1",
        "data pack images packed --workers 2 --shard-size 4",
    ):
        elsewhere(run, *command.split(), cwd=tmp_path)
    assert (tmp_path / "packed" / "index.json").exists()


def test_no_process_is_signalled_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / f".model.pt.{atomic.host_name()}-1-0.tmp"
    left.write_bytes(b"half")
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("signal 0 is Ctrl-C there"))
    atomic.write_text(tmp_path / "model.pt", "whole")
    assert left.exists()
    os.utime(left, (0, 0))
    atomic.write_text(tmp_path / "model.pt", "whole")
    assert not left.exists()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists what is mapped")
@pytest.mark.parametrize("system", ["linux", "win32"])
def test_checkpoints_are_not_mapped_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    path = tmp_path / "last.pt"
    torch.save({"weight": torch.ones(3)}, path)
    monkeypatch.setattr("sys.platform", system)
    loaded = torch_file.load(path, "torch")
    assert loaded["weight"].tolist() == [1, 1, 1]
    assert (str(path) in Path("/proc/self/maps").read_text()) == (system == "linux")


def test_remote_shards_are_refused_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(StarfireError, match="need Linux or macOS"):
        Spool(folder=tmp_path, urls=(), lengths=(), checksums=()).executor(1)


def test_a_pipe_without_select_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("select.select", lambda *_: (_ for _ in ()).throw(OSError(10038, "not a socket")))
    monkeypatch.setattr("time.sleep", waits.append)
    _wait_for_room(1)
    assert waits == [0.01]


def test_cores_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() >= 1
