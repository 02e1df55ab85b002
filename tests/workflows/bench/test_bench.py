"""`starfire bench` times what it says: arithmetic against other code, engines that fail, and what users see."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import save
from starfire_cli.models import build_model, count_macs
from starfire_cli.records.bench import BatchTimings, LayerTiming, Timing
from starfire_cli.workflows.bench import engines
from starfire_cli.workflows.bench import run as workflow
from starfire_cli.workflows.bench.engines import Engine
from starfire_cli.workflows.bench.request import BenchRequest
from starfire_cli.workflows.bench.rounds import LEAST, ROUNDS, time_in_rounds

Capture = pytest.CaptureFixture[str]
QUICK = ("--no-compile", "--seconds", "0.02", "--threads", "1")
LOOPS = ("taps", "kernels")
WAYS = ["torch", "torch-channels-last", "onnxruntime", "openvino", "starfire"]


def flat(num_classes: int) -> torch.nn.Module:
    """Takes images of 8x8 only."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, num_classes))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of which whole 3x3 kernels and single weights are gone; the file does not say which network."""
    torch.manual_seed(0)
    state = build_model("tests.tiny:net", num_classes=10).state_dict()
    state["conv1.weight"][:, 1] = 0  # a third
    state["conv2.weight"].view(-1)[::2] = 0  # half
    path = tmp_path_factory.mktemp("bench") / "tiny.pt"
    torch.save(state, path)
    return path


def run(*arguments: object, code: int = 0) -> int:
    assert main(["bench", *map(str, arguments)]) == code
    return code


def as_json(capsys: Capture, *arguments: object) -> dict[str, Any]:
    run("--json", *arguments)
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def fails(capsys: Capture, *arguments: object, code: int = 2) -> str:
    run(*arguments, code=code)
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and out == ""
    return err


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """These packages cannot be found."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else real(name, *rest)
    )


def test_all_ways_compute_the_same_and_are_timed(pruned: Path, capsys: Capture) -> None:
    before = torch.get_num_threads()
    found = as_json(capsys, pruned, "--model", "tests.tiny:net", "--input", "16", "--batch", "1,3", *QUICK)
    assert torch.get_num_threads() == before
    assert found["input"] == [3, 16, 16] and found["threads"] == 1 and found["versions"]["torch"] == torch.__version__
    assert [batch["batch"] for batch in found["batches"]] == [1, 3]
    net = build_model("tests.tiny:net", num_classes=10)
    macs = count_macs(net, 16)
    assert found["macs"] == sum(macs.values())
    spared = macs["conv1"] // 3 + macs["conv2"] // 2
    assert found["macs_effective"] == found["macs"] - spared
    for batch in found["batches"]:
        assert [way["name"] for way in batch["ways"]] == WAYS
        ran = {way["name"]: way for way in batch["ways"] if way["not_run"] is None}
        assert {"torch", "torch-channels-last", "starfire"} <= ran.keys()
        assert ("onnxruntime" in ran) == all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))
        for way in ran.values():
            assert way["same_output"] and way["difference"] < 1e-4
            assert way["rounds"] >= LEAST and way["calls"] >= way["rounds"]
            assert 0 < way["median_seconds"] <= way["p90_seconds"]
            assert way["images_per_second"] == pytest.approx(batch["batch"] / way["median_seconds"])
        assert len({way["rounds"] for way in ran.values()}) == 1
        best = min((way["median_seconds"], name) for name, way in ran.items() if name != "starfire")
        assert batch["best_dense"] == best[1]
        assert batch["speedup"] == pytest.approx(best[0] / ran["starfire"]["median_seconds"])
        layers = {layer["name"]: layer for layer in batch["layers"]}
        assert list(layers) == ["conv1", "conv2", "point", "fc"]
        assert [layer["density"] for layer in layers.values()] == pytest.approx([2 / 3, 1 / 2, 1, 1])
        assert {name: layer["macs"] for name, layer in layers.items()} == macs
        chosen = batch["engine"]
        assert chosen["name"] in chosen["seconds"] and "starfire" in chosen["seconds"]
        assert chosen["images"] == batch["batch"]
        for layer in layers.values():
            own = layer["seconds"].get(layer["how"])
            assert own == min(layer["seconds"].values()) if chosen["name"] == "starfire" else layer["how"] not in LOOPS


def test_what_a_person_sees(pruned: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino", "onnxruntime")
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0), raising=False)
    run(pruned, "--model", "tests.tiny:net", "--input", "3x16x16", "--batch", "2", "--layers", *QUICK)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "mean 0 and std 1 cost the same" in out and "busy (load 3.0)" in out
    assert 'ONNX Runtime: not run: onnxruntime is not installed (pip install "starfire-cli[onnx]")' in lines
    assert 'OpenVINO: not run: openvino is not installed (pip install "starfire-cli[bench]")' in lines
    assert sum(line.startswith("torch, ") and " * " in line for line in lines) == 1  # the best dense one
    assert any(line.startswith("ours is ") for line in lines)
    (conv2,) = [line.split() for line in lines if line.startswith("conv2 ")]
    assert conv2[1:3] == ["12x8x3x3", "0.500"] and conv2[-1] == "1/2.0"
    assert "torch, contiguous is made ready" in err
    assert "OpenVINO is made ready" not in err and "ONNX Runtime is made ready" not in err
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if a terminal were there
    monkeypatch.setenv("TERM", "dumb")
    run(pruned, "--model", "tests.tiny:net", "--input", "16", "--batch", "2", "--layers", *QUICK)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("way", "layer", "conv"))]
    assert len(table) == 4 and all(len(line) <= 80 for line in table) and "images/s" in table[0]


def test_without_llvmlite_the_dense_ones_are_timed(
    pruned: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "llvmlite", "openvino", "onnxruntime")
    arguments = (pruned, "--model", "tests.tiny:net", "--input", "16", "--batch", "1", *QUICK)
    (batch,) = as_json(capsys, *arguments)["batches"]
    assert batch["speedup"] is None and batch["layers"] == []
    assert batch["ways"][-1]["not_run"] == 'llvmlite is not installed (pip install "starfire-cli[fast]" brings it)'
    assert batch["best_dense"].startswith("torch")
    run(*arguments)
    out = capsys.readouterr().out
    assert 'not run: llvmlite is not installed (pip install "starfire-cli[fast]" brings it)' in out


def test_engines_that_fail_or_lie_are_told_and_do_not_count(
    pruned: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = engines.ENGINES[0].ready

    def liar(job: engines.BenchJob) -> engines.Run:
        output = plain(job)() * 1.01
        return lambda: output

    def never(job: engines.BenchJob) -> engines.Run:
        raise ImportError("No C++ compiler\n  was found")

    def late(job: engines.BenchJob) -> engines.Run:
        run, calls = plain(job), []

        def failing() -> torch.Tensor:
            calls.append(1)
            if len(calls) > 3:
                raise MemoryError("too much")
            return run()

        return failing

    def short(job: engines.BenchJob) -> engines.Run:
        return lambda: plain(job)()[:, :3]

    added = [Engine(name=f.__name__, label=f.__name__, ready=f) for f in (liar, never, late, short)]
    monkeypatch.setattr(workflow, "ENGINES", (engines.ENGINES[0], *added))
    arguments = (pruned, "--model", "tests.tiny:net", "--input", "16", "--batch", "2", *QUICK)
    (batch,) = as_json(capsys, *arguments)["batches"]
    ways = {way["name"]: way for way in batch["ways"]}
    assert batch["best_dense"] == "torch"  # though the liar is quicker by far
    assert ways["liar"]["same_output"] is False and ways["liar"]["difference"] == pytest.approx(0.01, rel=0.01)
    assert ways["liar"]["median_seconds"] < ways["torch"]["median_seconds"]
    assert ways["never"]["not_run"] == "No C++ compiler was found"
    assert ways["late"]["not_run"] == "too much" and ways["late"]["median_seconds"] is None
    assert ways["short"]["not_run"] == "its output is (2, 3), the dense network's (2, 10)"
    run(*arguments)
    out = capsys.readouterr().out
    assert "liar computes something else: its output differs by 0.01 of the largest value" in out
    assert "never: not run: No C++ compiler was found" in out


def test_a_network_that_cannot_be_traced_is_timed_dense(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).mean((2, 3)) if x.sum() > 0 else x

    found = workflow._sparse(Branching().eval(), None)
    assert isinstance(found, str) and found


def test_options_that_mean_nothing(pruned: Path, tmp_path: Path, capsys: Capture) -> None:
    tiny = (pruned, "--model", "tests.tiny:net")
    assert "--batch '1,x': 'x' is no number in a list" in fails(capsys, *tiny, "--batch", "1,x")
    assert "--batch '0' is no list" in fails(capsys, *tiny, "--batch", "0")
    assert "such as 3x224x224" in fails(capsys, *tiny, "--input", "3x2x4")
    assert "has 1 channels" in fails(capsys, *tiny, "--input", "1x28x28")
    assert "--threads 0 is out of range" in fails(capsys, *tiny, "--threads", "0")
    assert "--seconds 0 is no time" in fails(capsys, *tiny, "--seconds", "0")
    assert "--seconds nan is not a number" in fails(capsys, *tiny, "--seconds", "nan")
    assert "does not say which model it is" in fails(capsys, pruned)
    assert "does not fit --model resnet20" in fails(capsys, pruned, "--model", "resnet20", code=1)
    assert "no file or run folder" in fails(capsys, tmp_path / "b.pt", code=1)
    torch.save(build_model("resnet20", num_classes=10).state_dict(), tmp_path / "r.pt")
    err = fails(capsys, tmp_path / "r.pt", "--model", "resnet20", "--std", "0")
    assert "--std '0'" in err
    assert "--mean" in fails(capsys, tmp_path / "r.pt", "--model", "resnet20", "--std", "0.5")


def test_no_code_runs_because_a_file_names_it(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef net(num_classes): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    meta = {"model": {"spec": "evil:net", "num_classes": 2}}
    save(tmp_path / "a.pt", state={"a.weight": torch.ones(2, 2)}, masks=None, meta=meta)
    assert "whose code is not run unasked" in fails(capsys, tmp_path / "a.pt")
    assert not marker.exists() and "evil" not in sys.modules


def test_an_input_that_the_network_does_not_take(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(flat(2).state_dict(), tmp_path / "flat.pt")
    monkeypatch.setattr(workflow, "ENGINES", engines.ENGINES[:1])
    arguments = (tmp_path / "flat.pt", "--model", "tests.workflows.bench.test_bench:flat")
    assert "does not take 9-pixel images" in fails(capsys, *arguments, "--input", "9")
    assert as_json(capsys, *arguments, "--input", "8", "--batch", "1", *QUICK)["macs"] == 192 * 2


def test_turns_are_fair() -> None:
    calls: list[str] = []

    def way(name: str, seconds: float) -> Any:
        def call() -> None:
            calls.append(name)
            time.sleep(seconds)

        return call

    found = time_in_rounds({"a": way("a", 0.001), "b": way("b", 0.004)}, 0.05)
    a, b = found["a"], found["b"]
    assert isinstance(a, tuple) and isinstance(b, tuple)
    assert LEAST <= len(a) == len(b) <= ROUNDS
    assert min(sum(turn) for turn in a + b) >= 0.005  # 0.05 s in ten turns
    assert len(calls) == sum(map(len, a + b)) + len(a) + len(b)  # a call that is not counted begins each turn
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert turns[:4] == ["a", "b", "a", "b"] or turns[:3] == ["a", "b", "a"]  # b begins the second round
    assert min(map(min, b)) >= 0.004 > min(map(min, a)) >= 0.001


def test_the_records_count_as_numpy_does() -> None:
    slow, quick = ((0.2, 0.4), (0.3,)), ((0.1, 0.1), (0.2,))
    dense = Timing(name="a", label="a", rounds=slow)
    ours = Timing(name="b", label="b", rounds=quick, sparse=True)
    assert dense.median == np.median([0.2, 0.4, 0.3])
    assert dense.p90 == pytest.approx(np.quantile([0.2, 0.4, 0.3], 0.9))
    both = BatchTimings(batch=1, timings=(dense, ours))
    assert both.best_dense is dense and both.ours is ours
    assert both.speedup(dense) == pytest.approx(0.3 / 0.1)
    assert both.speedup_range(dense) == pytest.approx((0.3 / 0.2, 0.3 / 0.1))
    wrong = BatchTimings(
        batch=1, timings=(dense, Timing(name="b", label="b", sparse=True, rounds=quick, difference=float("nan")))
    )
    assert wrong.ours is None and wrong.speedup(dense) is None
    layer = LayerTiming(
        name="x", shape=(4, 2, 3, 3), live=18, how="taps", seconds={"taps": 0.1, "dense": 0.3}, macs=7200
    )
    assert (layer.density, layer.macs_left, layer.faster) == (0.25, 1800, pytest.approx(3.0))


def test_from_python_the_threads_are_given_back_when_it_is_stopped(pruned: Path) -> None:
    before = torch.get_num_threads()
    request = BenchRequest(checkpoint=pruned, model="tests.tiny:net", image="16", threads=before + 1, compile=False)
    records = workflow.bench(request)
    next(records)
    assert torch.get_num_threads() == before + 1
    records.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == before
