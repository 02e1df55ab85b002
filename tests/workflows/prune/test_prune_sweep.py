"""The accuracies of prune-mask and inspect A B are those of the networks that come out."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.data import DataOptions, open_val
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.models import Normalized
from starfire_cli.networks.evaluate import evaluate
from tests.tiny import Net

Capture = pytest.CaptureFixture[str]
SPEC = "tests.tiny:net"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network after one epoch on the digits: some of its answers are right."""
    folder = tmp_path_factory.mktemp("runs")
    options = ["--data", "digits", "--model", SPEC, "--method", "dense", "--epochs", "2", "--batch-size", "64"]
    assert main(["train", *options, "--out", str(folder), "--name", "tiny", "--device", "cpu", "--quiet"]) == 0
    return folder / "tiny" / "best.pt"


def top1(path: Path) -> float:
    """The accuracy, without prune-mask's own code around it."""
    found = load(path)
    info, split = open_val(found.meta.data.values, None, DataOptions())
    net = Net(len(info.classes))
    net.load_state_dict(found.state)
    accuracy = evaluate(Normalized(net, info.mean, info.std), split)
    assert accuracy is not None
    return accuracy.top1


def output(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_sweep_measures_what_prune_mask_writes(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ("--method", "window", "--model", SPEC, "--device", "cpu")
    text = output(capsys, "prune-mask", trained, *options, "--sweep", "0.3:0.6:0.3", "--json")
    points = json.loads(text)["points"]
    assert [point["target"] for point in points] == [0, 0.3, 0.6]
    assert points[0]["top1"] == top1(trained) and points[0]["sparsity"] == 0
    for point in points[1:]:
        out = tmp_path / f"{point['target']}.pt"
        text = output(
            capsys,
            *("prune-mask", trained, *options, "--target", point["target"], "-o", out, "--evaluate", "--json"),
        )
        found = json.loads(text)
        assert found["accuracy_before"]["top1"] == points[0]["top1"]
        assert found["accuracy_after"]["top1"] == point["top1"] == top1(out)
        assert found["sparsity_after"] == pytest.approx(point["sparsity"])
        assert load(out).meta.metrics.val_top1 == point["top1"]


def test_sensitivity_prunes_one_layer_at_a_time(trained: Path, capsys: Capture) -> None:
    options = ("--model", SPEC, "--device", "cpu", "--only", "conv1", "--only", "fc", "--recalibrate", 2)
    text = output(capsys, "prune-mask", trained, *options, "--sweep", "0.5,0.95", "--per-layer", "--csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    # 0.95 would leave nothing of a 3 x 3 window
    assert [(row["layer"], row["target"]) for row in rows] == [
        ("", "0.0"),
        ("conv1", "0.5"),
        ("fc", "0.5"),
        ("fc", "0.95"),
    ]
    assert float(rows[1]["sparsity"]) == pytest.approx(5 / 9)
    shown = output(capsys, "prune-mask", trained, *options, "--sweep", "0.5,0.95", "--per-layer")
    assert "skipped: --target 0.95" in shown
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["conv1", "fc"]


def test_predictions_that_flipped(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ("--model", SPEC, "--device", "cpu")
    output(capsys, "prune-mask", trained, *options, "--method", "ck", "--target", 0.5, "-o", tmp_path / "b.pt")
    text = output(capsys, "inspect", trained, tmp_path / "b.pt", *options, "--evaluate", "--json")
    found = json.loads(text)["predictions"]
    said = []
    for path in (trained, tmp_path / "b.pt"):
        checkpoint = load(path)
        info, split = open_val(checkpoint.meta.data.values, None, DataOptions())
        net = Net(len(info.classes))
        net.load_state_dict(checkpoint.state)
        model = Normalized(net, info.mean, info.std).eval()
        with torch.no_grad():
            said.append(torch.cat([model(images).argmax(1) for images, _ in split.batches(0)]))
    assert found["images"] == len(said[0])
    assert found["flipped"] == int((said[0] != said[1]).sum()) > 0
    assert found["top1_a"] == pytest.approx(top1(trained)) and found["top1_b"] == pytest.approx(top1(tmp_path / "b.pt"))
    assert found["right_only_in_a"] - found["right_only_in_b"] == round(
        (found["top1_a"] - found["top1_b"]) * found["images"]
    )


def test_prune_then_fine_tune_then_inspect(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    """Prune after training (Han et al.): what died in one shot is still dead after fine-tuning."""
    pruned = tmp_path / "pruned.pt"
    output(capsys, "prune-mask", trained, "--model", SPEC, "--method", "ck", "--target", 0.5, "-o", pruned)
    options = ["--data", "digits", "--model", SPEC, "--method", "ck", "--target", 0.5, "--epochs", 1, "--era", "0:1"]
    output(capsys, "train", "--init", pruned, *options, "--out", tmp_path, "--name", "tuned", "--device", "cpu")
    text = output(capsys, "inspect", pruned, tmp_path / "tuned", "--json")
    total = json.loads(text)["total"]
    assert total["revived"] == 0 and total["mask_iou"] == 1 and total["same_weights"] is False


def test_the_data_must_have_the_networks_classes(tmp_path: Path, capsys: Capture) -> None:
    save(tmp_path / "a.pt", state=Net(7).state_dict(), masks=None, meta={})
    arguments = ["prune-mask", str(tmp_path / "a.pt"), "--model", SPEC, "--data", "digits", "--target", "0.5"]
    assert main([*arguments, "--device", "cpu"]) == 1
    assert "tells 7 classes apart; the data digits have 10" in capsys.readouterr().err


def test_a_shrunk_network_is_trained_resumed_and_attacked(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    found = load(trained)
    state = {key: tensor.clone() for key, tensor in found.state.items()}
    state["conv1.weight"][:3] = 0
    state["bn1.bias"][:3] = -100  # after the ReLU nothing is left of these channels
    save(tmp_path / "dead.pt", state=state, masks=None, meta=found.meta.values)
    options = ("--model", SPEC, "--device", "cpu")
    text = output(
        capsys,
        *("prune-mask", tmp_path / "dead.pt", *options, "--method", "dense", "--target", 0, "--shrink"),
        *("--evaluate", "-o", tmp_path / "small.pt", "--json"),
    )
    shrunk = json.loads(text)
    assert shrunk["accuracy_before"] == shrunk["accuracy_after"]
    assert shrunk["shrunk"]["difference_real"] < 1e-5
    train = ("--data", "digits", "--model", SPEC, "--method", "ck", "--target", 0.4, "--device", "cpu")
    output(capsys, "train", "--init", tmp_path / "small.pt", *train, "--epochs", 1, "--out", tmp_path, "--name", "t")
    output(capsys, "train", "--resume", tmp_path / "t", "--model", SPEC, "--epochs", 2)
    text = output(capsys, "inspect", tmp_path / "t", "--model", SPEC, "--json")
    shapes = {layer["name"]: layer["shape"] for layer in json.loads(text)["layers"]}
    assert shapes["conv1"] == [5, 3, 3, 3] and shapes["conv2"] == [12, 5, 3, 3]
    output(capsys, "attack", tmp_path / "t", "--eps", "0", *options)
