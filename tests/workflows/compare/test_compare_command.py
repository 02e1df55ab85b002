"""`starfire compare` end to end on digits: what it trains, writes and shows, and how it goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.commands.train_options import parse_train_options
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.run import Run
from starfire_cli.formats.run_lock import locked
from starfire_cli.records.compare import CellProgress, CompareCell
from starfire_cli.workflows.compare import pool
from starfire_cli.workflows.compare.cells import BaseRequest
from starfire_cli.workflows.compare.folder import CompareFolder
from starfire_cli.workflows.compare.request import CompareRequest
from starfire_cli.workflows.compare.run import compare

TRAIN = ["--model", "tests.tiny:net", "--limit-train", "320", "--limit-val", "50", "--device", "cpu", "--workers", "0"]
COMMON = [*TRAIN, "--epochs", "2", "--batch-size", "32"]
RATE = ["--optimizer", "adam", "--lr", "0.01"]
QUICK = ["--no-attack", "--no-pack", "--no-latency"]


def starfire(folder: Path, *options: str, methods: str = "ck,dense", target: str = "0.5", seeds: str = "2") -> int:
    own = ["compare", "--methods", methods, "--target", target, "--seeds", seeds, "--out", str(folder)]
    return main([*own, *COMMON, *options, *([] if "--" in options else ["--"]), *RATE])


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two methods with two seeds; copied, not changed, by the tests."""
    folder = tmp_path_factory.mktemp("compare") / "c"
    assert starfire(folder, "--no-latency", "--jobs", "1", "--eps", "2/255,0.05", "--quiet") == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "c"))


def test_everything_is_in_the_json(finished: Path) -> None:
    found = document(finished)
    assert (found["format"], found["version"], found["seeds"]) == ("starfire-compare", 1, [0, 1])
    assert found["command"].startswith("starfire") and found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["cores"] >= 1 and "6 in training" in found["counting"]
    assert found["settings"]["methods"] == ["dense", "ck"] and found["settings"]["epochs"] == 2
    dense, ck = found["rows"]
    assert (dense["title"], ck["title"], ck["target"]) == ("dense", "ck 0.5", 0.5)
    assert dense["top1_minus_dense"] is None and ck["sparsity_prunable"] >= 0.5
    cells = {cell["name"]: cell["figures"] for cell in found["cells"]}
    assert list(cells) == ["dense-s0", "dense-s1", "ck-t0.5-s0", "ck-t0.5-s1"]
    apart = [cells[f"ck-t0.5-s{seed}"]["top1"] - cells[f"dense-s{seed}"]["top1"] for seed in (0, 1)]
    difference = ck["top1_minus_dense"]
    assert difference["mean"] == pytest.approx(sum(apart) / 2) and difference["seeds"] == 2
    # Of two values the standard deviation is |a - b| / sqrt(2), and t is 12.7062.
    assert difference["half_width"] == pytest.approx(12.7062 * abs(apart[0] - apart[1]) / 2, rel=1e-4)
    assert [point["eps"] for point in ck["attack"]] == ["2/255", "0.05"]
    for name, figures in cells.items():
        run = Run(finished / name)
        rows = run.read_metrics()
        assert figures["top1"] == rows[-1]["val_top1"] and figures["curve"] == [row["val_top1"] for row in rows]
        assert figures["training_flops"] == 6 * sum(row["train_macs"] for row in rows)
        assert figures["packed_bytes"] == (run.path / "last.safetensors").stat().st_size
        clean, *attacked = [top1 for _, top1 in figures["robustness"]["points"]]
        assert clean == figures["top1"] and len(attacked) == 2 and figures["robustness"]["images"] == 50
        assert figures["facts"]["command"] == load(run.last).meta.values["command"]
        assert load(run.last).meta.request["seed"] == int(name[-1])
    assert (finished / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_not_done_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.glob("*/*")}
    assert starfire(copy, "--no-latency", "--eps", "2/255,0.05", "--json") == 0
    out = capsys.readouterr()
    assert json.loads(out.out) == document(copy) and "4 cells, 4 of them done" in out.err
    assert {path: path.stat().st_mtime_ns for path in copy.glob("*/*")} == before
    # Another eps is measured on the networks there are.
    assert starfire(copy, "--no-latency", "--eps", "0.05,0.1", "--jobs", "1", "--quiet") == 0
    assert [point["eps"] for point in document(copy)["rows"][1]["attack"]] == ["0.05", "0.1"]
    checkpoints = {path: when for path, when in before.items() if path.suffix == ".pt"}
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints


def test_the_table_has_what_fits(copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    assert starfire(copy, "--no-latency", "--eps", "2/255,0.05") == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("method"))
    assert re.sub(" +", " ", lines[head - 1]).strip() == (
        "top-1 minus dense sparsity train infer time packed FGSM 2/255 minus dense FGSM 0.05 minus dense"
    )
    row = document(copy)["rows"][1]
    shown = next(line for line in lines if line.startswith("ck 0.5")).split()
    half = 100 * row["top1_minus_dense"]["half_width"]
    assert shown[2:6] == [
        f"{100 * row['top1']['mean']:.2f}",
        f"{100 * row['top1_minus_dense']['mean']:+.2f}",
        "±",
        f"{half:.2f}",
    ]
    assert shown[6] == f"{row['sparsity_prunable']:.4f}"
    assert lines[-1] == f"written {copy / 'compare.png'}"


def test_more_seeds_and_methods_may_come_and_nothing_else_may_change(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = document(copy)["cells"]
    for change, told in (
        (["--epochs", "3"], "--epochs 3 contradicts the comparison in"),
        (["--", "--ema", "0.9"], "--ema 0.9 contradicts the comparison in"),
        (["--equal", "flops"], "--equal flops contradicts"),
        (["--checkpoint", "best"], "--checkpoint best contradicts"),
        (["--seeds", "1,2"], "--seeds 1,2 lacks 0"),
        (["--methods", "window"], None),
    ):
        assert starfire(copy, *QUICK, "--jobs", "1", "--quiet", *change) == (2 if told else 0)
        err = capsys.readouterr().err
        assert told is None or (told in err and err.count("\n") == 1)
    assert [row["title"] for row in document(copy)["rows"]] == ["dense", "ck 0.5", "window 0.5"]
    assert [cell for cell in document(copy)["cells"] if "window" not in cell["name"]] == before


def same_weights(one: Path, other: Path) -> bool:
    a, b = load(one / "last.pt").state, load(other / "last.pt").state
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_cell_that_was_cut_off_goes_on_to_the_same_bits(finished: Path, tmp_path: Path) -> None:
    train, given = parse_train_options([*COMMON, *RATE])
    base = BaseRequest(request=train, given=given)
    asked = CompareRequest(methods=("ck,dense",), target=(0.5,), seeds=(0,), jobs=1, out=tmp_path / "c")
    records = compare(asked, base)
    for record in records:
        if isinstance(record, CellProgress) and record.cell.method == "ck" and record.text.startswith("top-1"):
            records.close()  # as a kill: nothing of ours runs any more
            break
    assert not (tmp_path / "c/ck-t0.5-s0/cell.json").exists() and Run(tmp_path / "c/ck-t0.5-s0").last.exists()
    assert starfire(tmp_path / "c", *QUICK, "--jobs", "1", "--quiet", seeds="1") == 0
    assert same_weights(tmp_path / "c/ck-t0.5-s0", finished / "ck-t0.5-s0")
    assert not (tmp_path / "c/.lock").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def press() -> None:
        while not (tmp_path / "c/dense-s0/last.pt").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    assert starfire(tmp_path / "c", *QUICK, "--jobs", "1", "--epochs", "50") == 130
    out = capsys.readouterr().out
    assert re.search(r"interrupted \(Ctrl-C\); 0 of 4 cells done.* The same command goes on: \S+", out)
    assert load(tmp_path / "c/dense-s0/last.pt", training=True).training is not None
    assert {cell["state"] for cell in document(tmp_path / "c")["cells"]} == {"missing"}


def spoil_json(path: Path) -> None:
    path.write_text('{"format": "starfire-cell", "version": 1')


def spoil_type(path: Path) -> None:
    path.write_text(json.dumps({"format": "starfire-cell", "version": 1, "cell": {}, "figures": [1e999]}))


def spoil_numbers(path: Path) -> None:
    held = json.loads(path.read_text())
    held["figures"]["top1"] = "high"
    path.write_text(json.dumps(held))


def spoil_cell(path: Path) -> None:
    """The figures of another cell."""
    shutil.copy(path.parents[1] / "dense-s0/cell.json", path)


@pytest.mark.parametrize("spoil", [spoil_json, spoil_type, spoil_numbers, spoil_cell, Path.unlink])
def test_figures_that_do_not_count_are_none(copy: Path, spoil: Any) -> None:
    cell, folder = CompareCell(method="ck", target=0.5, seed=1), CompareFolder(copy)
    assert folder.read_figures(cell, "last") is not None and folder.read_figures(cell, "best") is None
    spoil(copy / "ck-t0.5-s1/cell.json")
    assert folder.read_figures(cell, "last") is None


def test_a_trained_cell_without_figures_is_measured_again(copy: Path) -> None:
    before, trained = document(copy), (copy / "ck-t0.5-s1/last.pt").stat().st_mtime_ns
    spoil_numbers(copy / "ck-t0.5-s1/cell.json")
    assert starfire(copy, *QUICK, "--jobs", "1", "--quiet") == 0
    for name in ("top1", "top1_minus_dense", "training_flops", "inference_flops", "sparsity_total"):
        assert [row[name] for row in document(copy)["rows"]] == [row[name] for row in before["rows"]]
    assert (copy / "ck-t0.5-s1/last.pt").stat().st_mtime_ns == trained


def test_a_damaged_cell_fails_alone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "ck-t0.5-s1/cell.json").unlink()
    for name in ("last.pt", "best.pt"):
        (copy / "ck-t0.5-s1" / name).write_bytes(b"PK\x03\x04nothing")
    (copy / "dense-s1/cell.json").unlink()
    (copy / "dense-s1/metrics.jsonl").write_text("")
    assert starfire(copy, *QUICK, "--jobs", "1") == 1
    out = capsys.readouterr().out
    assert (
        re.search("ck-t0.5-s1: failed: .* damaged", out)
        and "dense-s1: failed: " in out
        and "0 rows for 2 epochs; remove" in out
    )
    assert {cell["name"]: cell["state"] for cell in document(copy)["cells"]} == {
        **{"dense-s0": "done", "ck-t0.5-s0": "done"},
        **{"dense-s1": "failed", "ck-t0.5-s1": "failed"},
    }
    assert "a cell whose folder is removed begins anew" in out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--methods", "widnow,dense"], "Did you mean 'window'"),
        (["--methods", "window:max_nonzero=20"], "max_nonzero"),
        (["--target", "0.99"], "leaves nothing of"),
        (["--attack", "--eps", "big"], "big"),
        (["--", "--lr", "fast"], "fast"),
        (["--", "--learning-rate", "1"], "--learning-rate"),
        (["--", "--epochs", "7"], "give one of the two"),
        (["--", "--target", "0.7"], "--target 0.7 after --"),
        (["--plot", "x.jpg"], ".png, .svg, .pdf"),
        (["--methods", ""], "--methods"),
        (["--equal", "flops", "--methods", "dense"], "--equal flops needs a method that prunes"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    methods = [] if "--methods" in options else ["--methods", "window"]
    assert main(["compare", *methods, "--out", str(tmp_path / "c"), *COMMON, *QUICK, *options]) in (1, 2)
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1 and not (tmp_path / "c").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("[]", "{}", '{"format": "starfire-compare", "version": 9}', "\x00"):
        (tmp_path / "compare.json").write_text(content)
        assert starfire(tmp_path) == 1
        assert "compare.json" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["compare.json"]
    (tmp_path / "compare.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    assert starfire(tmp_path) == 2 and "the folder of one run" in capsys.readouterr().err
    assert starfire(tmp_path / "config.json") == 2 and "is a file" in capsys.readouterr().err


def test_as_many_cells_run_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10_000
    monkeypatch.setattr(pool, "available_memory", lambda: free)
    monkeypatch.setattr(pool, "cores", lambda: 8)
    found = pool._Pool([], None)
    assert found._room() == 1  # nothing is known yet
    found._peak = 1000
    assert found._room() == 8 and pool._Pool([], 3)._room() == 3
    free = 3000
    assert found._room() == 2  # 2.4 peaks, with a fifth to spare each
    found._gpu = (500, 700)
    assert found._room() == 1
    monkeypatch.setattr(pool, "available_memory", lambda: None)
    assert found._room() == 1


@pytest.mark.slow
def test_cells_in_processes_of_their_own_give_the_same_networks(finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "starfire_cli", "compare", "--methods", "ck,dense", "--target", "0.5"]
    command += [
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "c"),
        *COMMON,
        "--no-latency",
        "--eps",
        "2/255,0.05",
        "--",
        *RATE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for cell in document(finished)["cells"]:
        assert same_weights(tmp_path / "c" / cell["name"], finished / cell["name"])
    assert [row["top1"] for row in document(tmp_path / "c")["rows"]] == [r["top1"] for r in document(finished)["rows"]]


@pytest.mark.slow
def test_a_killed_worker_fails_its_cell_and_a_killed_comparison_leaves_no_worker(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "starfire_cli",
        "compare",
        "--methods",
        "ck,dense",
        "--target",
        "0.5",
        "--jobs",
        "2",
    ]
    command += ["--seeds", "1", "--out", str(tmp_path / "c"), *COMMON, *QUICK, "--epochs", "40"]

    def workers(parent: int) -> list[int]:
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(pid) for pid in found]

    def begun(process: subprocess.Popen[str]) -> list[int]:
        while not all((tmp_path / "c" / name / "last.pt").exists() for name in ("ck-t0.5-s0", "dense-s0")):
            assert process.poll() is None
            time.sleep(0.05)
        return workers(process.pid)

    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    one, _ = begun(process)
    os.kill(one, signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "its process was killed" in out
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not workers(process.pid):
        time.sleep(0.05)
    (other,) = workers(process.pid)
    process.kill()
    process.communicate()
    for _ in range(600):
        if not Path(f"/proc/{other}").exists():
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the worker goes on without anybody")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_at_equal_flops_all_spend_what_the_cheapest_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "c"
    options = (*QUICK, "--jobs", "1", "--equal", "flops", "--epochs", "6", "--limit-train", "96")
    assert starfire(folder, *options, methods="ck,static", target="0.8", seeds="1") == 0
    found = document(folder)
    assert "equal training FLOPs at target 0.8, in epochs: dense" in capsys.readouterr().out
    dense, ck, static = found["rows"]  # dense is there without being asked for
    assert dense["epochs"] < ck["epochs"] < static["epochs"] == 6
    for row in (dense, ck):  # to whole epochs, so half an epoch of its own more or less
        apart = abs(row["training_flops"] - static["training_flops"])
        assert apart <= 0.6 * row["training_flops"] / row["epochs"]
    assert ck["top1_minus_dense"]["seeds"] == 1
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    assert starfire(folder, *options, methods="ck,static", target="0.8", seeds="1") == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*")} == before
    capsys.readouterr()
    assert starfire(folder, *options, methods="ck,static,window", target="0.8", seeds="1") == 2
    assert "contradicts the comparison" in capsys.readouterr().err


def test_two_at_a_time_are_told_apart(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(copy, "starfire compare ...", noun="filled", again="give the same command"):
        assert starfire(copy, *QUICK, "--quiet") == 1
    err = capsys.readouterr().err
    assert re.search(r"is being filled by process \d+ .* and then give the same command$", err.strip())
