"""Targets: every one gives an object file of its kind, and under an emulator the network's logits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from starfire_cli.errors import BadOption
from starfire_cli.sparse.export.header import example, header
from starfire_cli.sparse.export.module import Description
from starfire_cli.sparse.export.targets import TARGETS, find_target
from starfire_cli.workflows.export.request import TARGETS as CHOICES
from tests.helpers.exported import export_small
from tests.tiny import Net

pytest.importorskip("llvmlite")
SIDE = 12
MACHINES = {"aarch64": 183, "armv7": 40, "riscv64": 243, "x86-64-v3": 62}  # in the header of ELF
EMULATORS = {
    "aarch64": ("qemu-aarch64", "/usr/aarch64-linux-gnu"),
    "armv7": ("qemu-arm", "/usr/arm-linux-gnueabihf"),
    "riscv64": ("qemu-riscv64", "/usr/riscv64-linux-gnu"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_object_files(name: str) -> None:
    torch.manual_seed(0)
    code = export_small(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 100, 2)), SIDE, name)
    assert code[:4] == b"\x7fELF" and int.from_bytes(code[18:20], "little") == MACHINES[name]


def test_the_command_line_offers_every_target() -> None:
    assert CHOICES == TARGETS
    assert [find_target(name).name for name in TARGETS] == list(TARGETS)
    with pytest.raises(BadOption, match=r"--target 'x86_64'.*Did you mean 'x86-64'\?"):
        find_target("x86_64")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("name", EMULATORS)
@torch.no_grad()
def test_emulated_processors(name: str, threads: bool, tmp_path: Path) -> None:
    emulator, root = EMULATORS[name]
    compiler = find_target(name).linkers[0]
    if not shutil.which(emulator) or not shutil.which(compiler):
        pytest.skip(f"needs {emulator} and {compiler}")
    torch.manual_seed(0)
    model = Net(5).eval()
    identity = Description(name="net", image=(3, SIDE, SIDE), outputs=5, mean=(0, 0, 0), std=(1, 1, 1), digest="")
    (tmp_path / "net.h").write_text(header(identity, threads=threads))
    text = example(identity, "cc")
    (tmp_path / "example.c").write_text(text.replace("_create(&network, 1", "_create(&network, 2") if threads else text)
    (tmp_path / "net.o").write_bytes(export_small(model, SIDE, name, threads=threads))
    image = torch.rand(1, 3, SIDE, SIDE)
    (tmp_path / "image").write_bytes(image.numpy().tobytes())
    build = [compiler, "-O1", "-o", "example", "example.c", "net.o", "-pthread"]
    subprocess.run(build, cwd=tmp_path, check=True)
    command = [emulator, "-L", root, "./example", "image"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    found = torch.tensor([float(line.split()[1]) for line in done.stdout.splitlines()[:-1]])
    expected = model(image)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
