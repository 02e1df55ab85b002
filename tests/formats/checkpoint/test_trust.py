"""A checkpoint may name code as its model; only a user who names it too has it run (docs/formats.md)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import starfire_cli
from starfire_cli.cli import main
from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint import file as files

SPEC = "starfire_untrusted:net"
CODE = """
from pathlib import Path
Path({marker!r}).touch()
from tests.tiny import net
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A marker that exists once the module named by SPEC, which lies in the current folder, was imported."""
    marker = tmp_path / "ran"
    (tmp_path / "starfire_untrusted.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "starfire_untrusted", raising=False)
    return marker


@pytest.fixture
def checkpoint(trap: Path, tmp_path: Path) -> Path:
    """A run of three steps with the network named by SPEC; what was run for that is forgotten."""
    options = ["--limit-train", "320", "--limit-val", "40", "--device", "cpu", "--epochs", "2", "--era", "0:1"]
    options += ["--max-steps", "3", "--out", str(tmp_path / "runs"), "--name", "a"]
    assert main(["train", "--model", SPEC, *options]) == 0
    trap.unlink()
    del sys.modules["starfire_untrusted"]
    return tmp_path / "runs" / "a" / "last.pt"


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--resume", "{0}"],
        ["train", "--resume", "{0}", "--epochs", "3"],
        ["attack", "{0}", "--eps", "0", "--device", "cpu"],
        ["attack", "{0}", "--against", "{0}", "--against-model", SPEC, "--eps", "0", "--device", "cpu"],
        ["compress", "{0}", "--values", "bf16", "--data", "digits"],
        ["compress", "{0}", "--to", "onnx"],
        ["prune-mask", "{0}", "--target", "0.8", "--evaluate"],
        ["inspect", "{0}", "{0}", "--evaluate"],
    ],
    ids=lambda command: " ".join(command[:1] + [word for word in command if word.startswith("--")]),
)
def test_code_that_a_file_names_is_not_run(
    command: list[str], checkpoint: Path, trap: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "onnx" in command:
        pytest.importorskip("onnxscript")
    before = checkpoint.read_bytes()
    capsys.readouterr()
    assert main([word.format(checkpoint) for word in command]) == 2
    said = capsys.readouterr().err
    assert not trap.exists()
    assert f"--model {SPEC}" in said and "Traceback" not in said
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("command", [["inspect", "{0}"], ["compress", "{0}"], ["prune-mask", "{0}", "--target", "0.8"]])
def test_what_needs_no_network_does_without(command: list[str], checkpoint: Path, trap: Path) -> None:
    assert main([word.format(checkpoint) for word in command]) == 0
    assert not trap.exists()


def test_from_python(checkpoint: Path, trap: Path) -> None:
    with pytest.raises(BadOption, match="not run unasked"):
        starfire_cli.load_model(checkpoint)
    assert starfire_cli.load(checkpoint)
    assert not trap.exists()
    assert starfire_cli.load_model(checkpoint, model=SPEC)(torch.rand(1, 3, 16, 16)).shape == (1, 10)
    assert trap.exists()


def test_the_user_may_name_it(checkpoint: Path, trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", str(checkpoint), "--eps", "0", "--device", "cpu", "--model", SPEC]) == 0
    assert trap.exists()
    assert main(["train", "--resume", str(checkpoint), "--model", "tests.tiny:net"]) == 2
    assert "contradicts the run being resumed" in capsys.readouterr().err
    assert main(["train", "--resume", str(checkpoint), "--model", SPEC, "--max-steps", "4"]) == 0
    command = f"starfire train --resume {checkpoint} --model {SPEC}"
    assert command in capsys.readouterr().out
    assert main([*command.split()[1:]]) == 0


def test_the_metadata_of_a_run_are_what_counts(checkpoint: Path, trap: Path) -> None:
    """A file whose two records of the model differ is caught by either."""
    stored = torch.load(checkpoint, weights_only=True)
    stored["meta"]["model"]["spec"] = "resnet20"
    torch.save(stored, checkpoint)
    assert files.load(checkpoint).meta.values["request"]["model"] == SPEC
    assert main(["train", "--resume", str(checkpoint)]) == 2
    assert not trap.exists()
