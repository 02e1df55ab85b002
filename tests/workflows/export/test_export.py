"""`starfire export`: files written, labels and digests in them, and one clear line where it cannot be done."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.errors import StarfireError
from starfire_cli.formats.atomic import atomic_write
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.networks.restore import restore_model
from starfire_cli.pruning.masks import digest
from starfire_cli.workflows.export.request import identifier
from tests.tiny import Net

pytest.importorskip("llvmlite")
COMPILER = shutil.which("cc")
SPEC = "tests.tiny:net"
CLASSES = 4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = Net(CLASSES)
    masks = {"conv2.weight": torch.rand_like(net.conv2.weight) > 0.7}
    with torch.no_grad():
        net.conv2.weight *= masks["conv2.weight"]
    path = tmp_path / "nine of 10.pt"
    meta = {"model": {"spec": SPEC, "num_classes": CLASSES, "image_size": 8}}
    files.save(path, state=net.state_dict(), masks=masks, meta=meta)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["export", *map(str, arguments), "--model", SPEC])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_a_library_and_its_python_module(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, checkpoint, "--mean", "0.5", "--std", "0.25", "--json")
    assert code == 0, err
    told = json.loads(out)
    folder = checkpoint.parent / "export"
    names = ["nine_of_10.o", "libnine_of_10.so", "nine_of_10.h", "example.c", "nine_of_10.py", "nine_of_10.json"]
    assert [Path(file["path"]).name for file in told["files"]] == names
    assert all(Path(file["path"]).stat().st_size == file["bytes"] for file in told["files"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert told["difference"] < 1e-5 and told["command"] is None
    found = files.load(checkpoint)
    assert found.masks is not None
    about = json.loads((folder / "nine_of_10.json").read_text())
    assert about["masks_sha256"] == digest(found.masks) and about["labels"] == list("0123")
    restored = restore_model(found, torch.device("cpu"), model=SPEC, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert about["weights_sha256"] == restored.digest
    network = _module(folder / "nine_of_10.py").Network()
    pixels = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    with torch.no_grad():
        expected = restored.model(torch.from_numpy(pixels))
    assert np.allclose(network(pixels), expected, rtol=1e-5, atol=1e-6)
    assert network(pixels[:0]) == [] and network.labels == list("0123")
    assert np.array_equal(network(pixels[:, :, :, ::-1][..., ::-1]), network(pixels)), "gaps are closed"
    wanted = r"float32 of shape \(N, 3, 8, 8\) is wanted"
    for wrong, told in (
        (pixels.astype(np.float64), rf"float64 of shape \(3, 3, 8, 8\); {wanted}"),
        (pixels.transpose(0, 2, 3, 1), rf"float32 of shape \(3, 8, 8, 3\); {wanted}"),
        (pixels.reshape(-1), rf"of shape \(576,\); {wanted}"),
        (pixels.tolist(), f"a list; a numpy array or buffer, {wanted}"),
    ):
        with pytest.raises(TypeError, match=told):
            network(wrong)
    for threads in (2, 0, -1, 2**32 + 1):
        with pytest.raises(ValueError, match=rf"threads={threads}: nine_of_10 was exported for 1 thread, without"):
            _module(folder / "nine_of_10.py").Network(threads=threads)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page(checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "web"
    flags = ("--target", "wasm32", "--demo", "--name", "nine", "--mean", "0.5", "--std", "0.25", "--out")
    code, told, err = run(capsys, checkpoint, *flags, out)
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir()) == ["nine.html", "nine.js", "nine.json", "nine.wasm"]
    assert "nine for wasm32: 3 x 8 x 8 pixels to 4 logits" in told


def test_without_a_linker_the_command_is_told(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    out = tmp_path / "arm"
    code, told, err = run(capsys, checkpoint, "--target", "aarch64", "--mean", "0.5", "--std", "0.25", "--out", out)
    assert code == 0, err
    told = " ".join(told.split())
    assert "libnine_of_10.so was not linked: no aarch64-linux-gnu-gcc is installed" in told
    assert "to link it: aarch64-linux-gnu-gcc -shared -o libnine_of_10.so nine_of_10.o" in told
    assert not (out / "libnine_of_10.so").exists() and (out / "nine_of_10.o").exists()


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (("--target", "sparc"), 2, "unknown --target 'sparc'; there are: aarch64, armv7"),
        (("--target", "wasm32", "--threads"), 2, "--threads: --target wasm32 has none"),
        (("--demo",), 2, "--demo is a page for --target wasm32, not for native"),
        (("--name", "a-b"), 2, "--name a-b: give letters, digits and _"),
        (
            ("--name", "status"),
            2,
            "--name status means something in C, Python or JavaScript",
        ),
        (("--name", "json"), 2, "--name json means something in C, Python or JavaScript; --name json_net does not"),
        (("--out", "{checkpoint}/x/y"), 1, "nine of 10.pt is not a folder"),
        (("--out", "/proc/x/y"), 1, "cannot write /proc/x/y: "),
        (("--out", "{checkpoint}"), 1, "is a file; give the name of a folder"),
        ((), 2, "--mean"),  # the file does not tell, and nobody gave it
    ],
)
def test_what_cannot_be_done_is_one_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], code: int, told: str
) -> None:
    filled = [flag.format(folder=checkpoint.parent, checkpoint=checkpoint) for flag in flags]
    found, out, err = run(capsys, checkpoint, *filled)
    assert (found, out) == (code, "") and told in err and err.count("\n") == 1
    assert sorted(checkpoint.parent.iterdir()) == [checkpoint], "nothing is written"


def test_folders_are_made(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = checkpoint.parent / "a" / "b"
    code, _, err = run(capsys, checkpoint, "--target", "riscv64", "--mean", "0.5", "--std", "0.25", "--out", out)
    assert code == 0, err
    assert (out / "nine_of_10.o").exists()


def test_all_files_are_written_or_none(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from starfire_cli.workflows.export import run as workflow

    made = []

    def full(path: Path, need: int) -> Any:
        made.append(path)
        if len(made) == 3:
            raise StarfireError("disk full")
        return atomic_write(path, need=need)

    monkeypatch.setattr(workflow, "atomic_write", full)
    code, _, err = run(capsys, checkpoint, "--target", "riscv64", "--mean", "0.5", "--std", "0.25")
    assert (code, len(made)) == (1, 3) and "disk full" in err
    assert sorted(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_file_of_others_is_not_overwritten(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = checkpoint.parent / "example.c"
    own.write_text("int main(void) { return 0; }")
    flags = ("--out", checkpoint.parent, "--target", "riscv64", "--mean", "0.5", "--std", "0.25")
    code, _, err = run(capsys, checkpoint, *flags)
    assert code == 1 and "example.c was not written by starfire export; give --out another folder" in err
    own.unlink()
    assert run(capsys, checkpoint, *flags)[0] == 0
    assert run(capsys, checkpoint, *flags)[0] == 0, "its own are"


def test_weights_that_are_no_numbers(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = files.load(checkpoint)
    state = {key: value.clone() for key, value in found.state.items()}
    state["point.bias"][0] = float("inf")
    files.save(checkpoint, state=state, masks=found.masks or {}, meta=found.meta.values)
    code, _, err = run(capsys, checkpoint, "--mean", "0.5", "--std", "0.25")
    assert code == 1 and "point: 1 of its weights are NaN or infinite" in err
    assert sorted(checkpoint.parent.iterdir()) == [checkpoint]


def test_logits_that_are_no_numbers(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = files.load(checkpoint)
    state = {key: value * 1e25 if value.ndim == 4 else value for key, value in found.state.items()}
    files.save(checkpoint, state=state, masks=found.masks or {}, meta=found.meta.values)
    code, _, err = run(capsys, checkpoint, "--mean", "0.5", "--std", "0.25", "--target", "riscv64")
    assert code == 1 and "8 of the network's own 8 logits for 2 random images are NaN or infinite" in err
    assert err.count("\n") == 1 and sorted(checkpoint.parent.iterdir()) == [checkpoint]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/digits-window-0.6/best.pt", "digits_window_0_6"),
        ("3 x.packed.safetensors", "net_3_x"),
        ("json.pt", "net_json"),
        ("class.pt", "net_class"),
        ("'; system('x').pt", "system_x"),
        ("...pt", "network"),
        (f"{'x' * 99}.pt", "x" * 48),
    ],
)
def test_names_are_identifiers(path: str, name: str) -> None:
    assert identifier(Path(path)) == name
