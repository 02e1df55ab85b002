"""`starfire export`: files written, labels and digests in them, and one clear line where it cannot be done."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.errors import StarfireError
from starfire_cli.formats.atomic import atomic_write
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.networks.restore import RestoredModel, restore_model
from starfire_cli.pruning.masks import digest
from starfire_cli.workflows.export.request import identifier
from tests.tiny import Net

pytest.importorskip("llvmlite")
COMPILER = shutil.which("cc")
SPEC = "tests.tiny:net"
CLASSES = 4


def saved(folder: Path) -> Path:
    torch.manual_seed(0)
    net = Net(CLASSES)
    masks = {"conv2.weight": torch.rand_like(net.conv2.weight) > 0.7}
    with torch.no_grad():
        net.conv2.weight *= masks["conv2.weight"]
    path = folder / "nine of 10.pt"
    meta = {"model": {"spec": SPEC, "num_classes": CLASSES, "image_size": 8}}
    files.save(path, state=net.state_dict(), masks=masks, meta=meta)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["export", *map(str, arguments), "--model", SPEC])
    out, err = capsys.readouterr()
    return code, out, err


@dataclass(frozen=True, kw_only=True)
class Made:
    """A checkpoint, the folder of its export, and the result as JSON."""

    checkpoint: Path
    folder: Path
    told: dict[str, Any]

    def restored(self) -> RestoredModel:
        found = files.load(self.checkpoint)
        return restore_model(found, torch.device("cpu"), model=SPEC, mean=(0.5,) * 3, std=(0.25,) * 3)

    def python(self) -> Any:
        spec = importlib.util.spec_from_file_location("nine_of_10", self.folder / "nine_of_10.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    if COMPILER is None:
        pytest.skip("no C compiler")
    path = saved(tmp_path_factory.mktemp("made"))
    with redirect_stdout(StringIO()) as out:
        assert main(["export", str(path), "--model", SPEC, "--mean", "0.5", "--std", "0.25", "--json"]) == 0
    return Made(checkpoint=path, folder=path.parent / "export", told=json.loads(out.getvalue()))


def test_a_library(made: Made) -> None:
    names = ["nine_of_10.o", "libnine_of_10.so", "nine_of_10.h", "example.c", "nine_of_10.py", "nine_of_10.json"]
    assert [Path(file["path"]).name for file in made.told["files"]] == names
    assert all(Path(file["path"]).stat().st_size == file["bytes"] for file in made.told["files"])
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(names)
    assert made.told["difference"] < 1e-5 and made.told["command"] is None
    about, masks = json.loads((made.folder / "nine_of_10.json").read_text()), files.load(made.checkpoint).masks
    assert masks is not None and about["masks_sha256"] == digest(masks)
    assert (about["data"], about["labels"]) == (None, list("0123"))
    assert about["weights_sha256"] == made.restored().digest


def test_a_python_module(made: Made) -> None:
    network = made.python().Network()
    pixels = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    with torch.no_grad():
        expected = made.restored().model(torch.from_numpy(pixels))
    logits = network(pixels)
    assert np.allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert network(pixels[:0]) == [] and network.labels == list("0123")
    assert network(pixels.repeat(2, axis=3)[..., ::2]) == logits, "gaps are closed"
    assert network(memoryview(pixels.tobytes()).cast("f", (3, 3, 8, 8))) == logits, "what is read only is copied"
    wanted = r"float32 of shape \(N, 3, 8, 8\) is wanted"
    for wrong, told in (
        (pixels.astype(np.float64), rf"float64 of shape \(3, 3, 8, 8\); {wanted}"),
        (pixels.transpose(0, 2, 3, 1), rf"float32 of shape \(3, 8, 8, 3\); {wanted}"),
        (pixels.reshape(-1), rf"of shape \(576,\); {wanted}"),
        (pixels.tolist(), f"a list; a numpy array or buffer, {wanted}"),
    ):
        with pytest.raises(TypeError, match=told):
            network(wrong)


@pytest.mark.parametrize("threads", [2, 0, -1, 2**32 + 1])
def test_a_python_module_refuses_numbers_of_threads(made: Made, threads: int) -> None:
    with pytest.raises(ValueError, match=rf"threads={threads}: nine_of_10 was exported for 1 thread, without"):
        made.python().Network(threads=threads)


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_a_library_needs_three_functions_and_has_five(made: Made) -> None:
    def told(which: str) -> set[str]:
        command = ["nm", "-D", which, str(made.folder / "libnine_of_10.so")]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return {line.split()[-1].split("@")[0] for line in found.splitlines()}

    assert told("--undefined-only") == {"malloc", "free", "memset"}
    assert told("--defined-only") == {f"nine_of_10_{name}" for name in ("info", "memory", "create", "run", "free")}


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
    out.mkdir()
    (out / "libnine_of_10.so").write_bytes(b"of an earlier export")
    code, told, err = run(capsys, checkpoint, "--target", "aarch64", "--mean", "0.5", "--std", "0.25", "--out", out)
    assert code == 0, err
    told = " ".join(told.split())
    assert "libnine_of_10.so was not linked: no aarch64-linux-gnu-gcc is installed" in told
    assert "libnine_of_10.so was removed: it was of an earlier export" in told
    assert "to link it: aarch64-linux-gnu-gcc -shared -nostartfiles -s -o libnine_of_10.so nine_of_10.o" in told
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
