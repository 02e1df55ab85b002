"""`starfire plot` as it is typed: what is written where, and what is said when it cannot be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint import file as checkpoint
from tests.helpers.plot_runs import config_of, rows_of, write_attack, write_run


def save_checkpoint(path: Path) -> dict[str, Tensor]:
    """Two layers, of which the first has every other kernel dead."""
    torch.manual_seed(0)
    state = {"conv.weight": torch.randn(16, 8, 3, 3), "fc.weight": torch.randn(10, 16)}
    mask = torch.ones(16, 8, 3, 3, dtype=torch.bool)
    mask[::2] = False
    meta = {"pruning": {"method": "ck", "fc": "dense", "target": 0.5}}
    checkpoint.save(path, state=state, masks={"conv.weight": mask}, meta=meta)
    return state


def plot(*arguments: object) -> int:
    return main(["plot", *map(str, arguments)])


def test_one_run_is_drawn_into_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "r")
    save_checkpoint(run / "best.pt")
    write_attack(run / "best.attack-fgsm.json")
    assert plot(run) == 0
    kinds = ("convergence", "sparsity", "layers", "window", "kernels", "robustness")
    written = [run.resolve() / f"plot-{kind}.png" for kind in kinds]
    assert capsys.readouterr().out.split("\n")[:-1] == [f"written {path}" for path in written]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_given_draws_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plot() == 1
    assert "there are no runs" in capsys.readouterr().err
    write_run(tmp_path / "runs" / "only")
    assert plot("-k", "sparsity", "-q") == 0
    assert (tmp_path / "runs" / "only" / "plot-sparsity.png").exists()
    assert capsys.readouterr() == ("", "")


def test_endings_decide_what_is_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    for name in ("a.pdf", "b.png"):
        assert plot(run, "-k", "convergence,sparsity", "-o", tmp_path / name, "-q") == 0
    assert sorted(path.name for path in tmp_path.glob("?[.-]*")) == ["a.pdf", "b-convergence.png", "b-sparsity.png"]
    assert len(re.findall(rb"/Type /Page\b", (tmp_path / "a.pdf").read_bytes())) == 2


@pytest.mark.parametrize("name", ["x.svg", "x.pdf"])
def test_a_single_kind_is_the_file_itself_and_the_same_every_time(tmp_path: Path, name: str) -> None:
    run, files = write_run(tmp_path / "r"), []
    for _ in range(2):
        assert plot(run, "-k", "sparsity", "-o", tmp_path / name, "-q") == 0
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_a_checkpoint_is_drawn_beside_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    assert plot("net.pt", "-k", "layers") == 0
    assert (tmp_path / "plot-layers.png").exists()
    assert capsys.readouterr().out.splitlines() == ["written plot-layers.png"]
    assert plot(tmp_path / "net.pt", "-k", "kernels", "--layer", "nope*") == 2
    assert "conv, fc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["r", "-k", "pie"], 2, "convergence, cost, kernels"),
        (["r", "-o", "x.jpg"], 2, ".png, .svg, .pdf"),
        (["r", "-o", "no/where/x.png"], 2, "there is no folder"),
        (["r", "--html", "no/where/x.html"], 2, "there is no folder"),
        (["r", "--x", "hour"], 2, "unknown --x 'hour'; there are: epoch, step"),
        (["r", "--table", "3"], 2, "1, 2, 5, 6, 7, 8"),
        (["r", "--table", "1", "-k", "layers"], 2, "exclude each other"),
        (["r", "--table", "1", "--format", "docx"], 2, "latex"),
        (["r", "--table", "1", "--at", "x"], 2, "90,100"),
        (["r", "--at", "3"], 2, "--table"),
        (["r", "-k", "layers"], 1, "a checkpoint with prunable layers"),
        (["r", "-k", "robustness"], 1, "starfire attack"),
        (["gone"], 1, "there is no file or folder gone"),
        (["empty"], 1, "no epoch is finished yet"),
        (["torn.pt"], 1, "torn.pt is no checkpoint: it starts with b'torn'"),
        (["r", "--table", "1", "-o", "x.png"], 2, ".md, .tex, .csv"),
        (["."], 0, ""),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("r"))
    write_run(Path("empty"), None, [])
    Path("torn.pt").write_bytes(b"torn")
    before = sorted(tmp_path.rglob("*"))
    assert plot(*arguments) == code
    said = capsys.readouterr().err
    if code:
        assert words in said
        assert len(said.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_do_not_count_steps_are_not_drawn_by_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"epoch": n, "val_top1": 0.1 * n, "step": 0} for n in (1, 2)]
    run = write_run(tmp_path / "stepless", config_of(seed=1), rows)
    assert plot(run, "--x", "step") == 1
    assert "--x epoch" in capsys.readouterr().err
    assert plot(run, write_run(tmp_path / "r"), "--x", "step", "-k", "convergence", "-o", tmp_path / "x.svg") == 0


def test_a_broken_checkpoint_spoils_no_other_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "r")
    (run / "best.pt").write_bytes(b"PK\x03\x04 torn")
    assert plot(run) == 0
    captured = capsys.readouterr()
    assert "left out: " in captured.err
    assert "best.pt" in captured.err
    assert captured.out.count("written") == 2


def test_layers_and_window_show_one_checkpoint_an_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        save_checkpoint(write_run(tmp_path / f"s{seed}", config_of(seed=seed)) / "best.pt")
    assert plot(tmp_path, "-k", "layers", "-o", tmp_path / "x.png") == 0
    assert "layers shows 1 of 2 checkpoints" in capsys.readouterr().err
    assert plot(tmp_path, "-k", "layers,tradeoff", "-o", tmp_path / "x.png") == 0
    assert "layers shows 1 of 2 checkpoints" in capsys.readouterr().err
    assert plot(tmp_path, "--html", tmp_path / "x.html", "-q") == 0
    assert "layers and window show 1 of 2 checkpoints" in (tmp_path / "x.html").read_text()
    capsys.readouterr()
    (tmp_path / "s1" / "best.pt").write_bytes(b"PK torn")
    assert plot(tmp_path, "-k", "layers,tradeoff", "-o", tmp_path / "x.png") == 0
    assert "checkpoints:" not in capsys.readouterr().err


def test_tables_are_printed_or_written_by_their_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "a")
    dense = config_of("dense")
    write_run(tmp_path / "runs" / "d", dense, rows_of(dense, 0.95))
    assert plot(tmp_path / "runs", "--table", 1) == 0
    out = capsys.readouterr().out
    assert "Dense (95.00)" in out
    assert re.search(r"CK +90\.00 \(-5\.00\)", out)
    for name, start in (("t.md", "**Table 1"), ("t.tex", "% \\usepackage"), ("t.csv", "setup,row"), ("t", "Table 1")):
        assert plot(tmp_path / "runs", "--table", 1, "-o", tmp_path / name, "-q") == 0
        assert (tmp_path / name).read_text().startswith(start)
    assert plot(tmp_path / "runs", "--table", 1, "--format", "csv") == 0
    assert capsys.readouterr().out == (tmp_path / "t.csv").read_text()


def test_curves_and_tables_come_without_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "r")
    code = (
        "import sys; from starfire_cli.cli import main; "
        "main(['plot', sys.argv[1], '-k', 'convergence', '-q']); main(['plot', sys.argv[1], '--table', '1']);"
        "print(sorted({'torch', 'torchvision', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
