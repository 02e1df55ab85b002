"""`starfire prune-mask` with methods that remove channels: what is written, and what other commands make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.networks.restore import rebuild_model
from tests.pruning.channels.selection.networks import TinyResNet, tiny_resnet

Capture = pytest.CaptureFixture[str]
SPEC = "tests.pruning.channels.selection.networks:tiny_resnet"
DIGITS = ("--data", "digits", "--mean", "0.3", "--std", "0.4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "net.pt"
    torch.save(tiny_resnet().state_dict(), path)
    return path


def run(capsys: Capture, command: str, *arguments: object) -> str:
    assert main([command, *map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def fails(capsys: Capture, *arguments: object, code: int = 2) -> str:
    assert main(["prune-mask", *map(str, arguments)]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


@torch.no_grad()
def outputs(path: Path) -> torch.Tensor:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return rebuild_model(load(path), SPEC).net(x)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("l1-filter", ("--target", 0.5)),
        pytest.param("slimming", ("--target", 0.5), marks=pytest.mark.slow),
        ("lasso-channel", ("--target", 0.5, "--calibrate", 32, *DIGITS)),
        pytest.param("thinet", ("--target", 0.5, "--calibrate", 32, *DIGITS), marks=pytest.mark.slow),
        pytest.param("pfa", ("--calibrate", 32, *DIGITS), marks=pytest.mark.slow),
    ],
)
def test_a_smaller_network_that_is_the_masked_one(
    tmp_path: Path, capsys: Capture, checkpoint: Path, method: str, options: tuple[object, ...]
) -> None:
    common = (checkpoint, "--model", SPEC, "--image-size", 16, "--method", method, *options)
    masked = json.loads(run(capsys, "prune-mask", *common, "-o", tmp_path / "masked.pt", "--json"))
    small = json.loads(run(capsys, "prune-mask", *common, "--shrink", "-o", tmp_path / "small.pt", "--json"))
    full, cut = load(tmp_path / "masked.pt"), load(tmp_path / "small.pt")
    assert full.masks is not None and cut.masks is not None
    widths = {k: int(m.flatten(1).any(1).sum()) for k, m in full.masks.items()}
    for layer in ("blocks.0.conv1", "blocks.1.conv1"):
        assert len(cut.state[f"{layer}.weight"]) == widths[f"{layer}.weight"] < 8
        assert len(cut.state[f"{layer.replace('conv', 'bn')}.weight"]) == widths[f"{layer}.weight"]
    assert torch.allclose(outputs(tmp_path / "small.pt"), outputs(tmp_path / "masked.pt"), atol=1e-4)
    assert small["shrunk"]["parameters"][1] < 0.75 * small["shrunk"]["parameters"][0]
    assert any(line.startswith("removed ") for line in small["did"]) and masked["did"] == small["did"]
    pruning = cut.meta.pruning
    assert (pruning.method, pruning.fc, pruning.target) == (method, "dense", None if method == "pfa" else 0.5)
    said = {entry["name"]: entry["reason"] for entry in masked["not_pruned"]}
    assert said["fc"] == "only channels of convolutions are removed"
    assert ("conv" in said) == (method != "slimming")


def test_what_it_writes_trains_and_goes_through_the_other_commands(
    tmp_path: Path, capsys: Capture, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = tmp_path / "small.pt"
    run(
        capsys,
        *("prune-mask", checkpoint, "--model", SPEC, "--method", "thinet", "--target", 0.4, "--calibrate", 32, *DIGITS),
        *("--recalibrate", 1, "--shrink", "-o", small),
    )
    train = ("--method", "dense", "--epochs", 1, "--limit-train", 64, "--limit-val", 64, "--name", "tuned", "-j", 0)
    run(capsys, "train", "--init", small, "--model", SPEC, *train)
    tuned = load(tmp_path / "runs" / "tuned" / "best.pt")
    assert {k: v.shape for k, v in tuned.state.items()} == {k: v.shape for k, v in load(small).state.items()}
    found = json.loads(run(capsys, "inspect", small, "--model", SPEC, "--json"))
    assert found["layers"][1]["shape"] == [4, 8, 3, 3]
    run(capsys, "compress", small, "-o", tmp_path / "small.sf")
    attacked = run(
        capsys, "attack", small, "--model", SPEC, "--data", "digits", "--images", 32, "--eps", "2/255", "--json"
    )
    assert json.loads(attacked)
    again = tmp_path / "again.pt"
    run(capsys, "prune-mask", small, "--model", SPEC, "--method", "l1-filter", "--target", 0.5, "--shrink", "-o", again)
    first, both = (load(path).meta.model.shrink or {} for path in (small, again))
    assert set(both["blocks.0.conv1"]["out"]) < set(first["blocks.0.conv1"]["out"])
    assert len(load(again).state["blocks.0.conv1.weight"]) == 2


def test_dead_weights_stay_dead_and_half_precision_stays(tmp_path: Path, capsys: Capture) -> None:
    net = tiny_resnet()
    masks = {"blocks.0.conv2.weight": torch.rand(8, 8, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5}
    net.blocks[0].conv2.weight.data[~masks["blocks.0.conv2.weight"]] = 0
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save(tmp_path / "a.pt", state=state, masks=masks, meta={})
    arguments = ("--model", SPEC, "--method", "lasso-channel", "--target", 0.5, "--calibrate", 32, *DIGITS)
    run(capsys, "prune-mask", tmp_path / "a.pt", *arguments, "-o", tmp_path / "b.pt")
    found = load(tmp_path / "b.pt")
    assert (
        found.masks is not None and not (found.masks["blocks.0.conv2.weight"] & ~masks["blocks.0.conv2.weight"]).any()
    )
    assert {v.dtype for k, v in found.state.items() if v.is_floating_point()} == {torch.float16}


def test_sweeps(capsys: Capture, checkpoint: Path) -> None:
    common = (checkpoint, "--model", SPEC, *DIGITS, "--json")
    found = json.loads(
        run(capsys, "prune-mask", *common, "--method", "thinet", "--calibrate", 32, "--sweep", "0.5,0.95")
    )
    assert [(p["target"], p["layer"]) for p in found["points"]] == [(0.0, None), (0.5, None)]
    assert found["points"][1]["sparsity"] > 0.3
    found = json.loads(
        run(capsys, "prune-mask", *common, "--method", "l1-filter", "--sweep", "0.5", "--per-layer", "--only", "*.0.*")
    )
    assert [p["layer"] for p in found["points"]] == [None, "blocks.0.conv1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--method", "thinet", "--target", 0.5), "--method thinet looks at images: --calibrate N says"),
        (("--method", "thinet", "--calibrate", 8), "--method thinet: give either --target T, the share of channels"),
        (("--method", "slimming", "--target", 0.5, "--calibrate", 8), "--calibrate 8 is of no use: --method slimming"),
        (("--method", "ck", "--target", 0.5, "--calibrate", 8), "--calibrate 8 is of no use: --method ck looks at no"),
        (("--method", "pfa", "--target", 0.5, "--calibrate", 8), "--target 0.5: --method pfa finds out by itself"),
        (("--method", "ssl", "--sweep", "0.5"), "--sweep: --method ssl finds out by itself how many channels go"),
        (
            ("--method", "thinet:keep=1", "--target", 0.5, "--calibrate", 8),
            "'keep=1' is not an option of thinet; options: ",
        ),
        (
            ("--method", "l1-filter", "--target", 0.5, "--fc", "block"),
            "--fc block: --method l1-filter removes channels of",
        ),
        (("--method", "slimming:strength=0.1", "--target", 0.5), "strength is for starfire train, and prune-mask does"),
        (("--method", "ssl:strength=0.1"), "--method ssl:strength=0.1: strength is for starfire train"),
        (("--method", "lebedev:strength=1", "--target", 0.5), "lebedev:strength=1: strength is for starfire train"),
        (("--method", "gmp:every=3", "--target", 0.5), "--method gmp:every=3: every is for starfire train"),
        (("--method", "ck", "--target", 0.5, "--keep-dense", "*"), "nothing is left to prune of"),
        (("--method", "l1-filter", "--target", 0.5, "--keep-dense", "*"), "exempt (--keep-dense *); fewer patterns"),
        (("--method", "l1-filter", "--target", 0.5, "--max-nonzero", 3), "--max-nonzero 3 caps windows"),
        (("--method", "thinet", "--target", 0.5, "--calibrate", 0), "--calibrate 0 is out of range: training images"),
        (("--method", "l1-filter", "--target", 0.5), "--method l1-filter needs the network of"),
        (
            ("--method", "l1-filter", "--target", 0.95, "--model", SPEC),
            "--target 0.95 leaves no channel of blocks.0.conv1",
        ),
        (("--method", "thinet", "--target", 0.5, "--calibrate", 8, "--model", SPEC), "--data"),
    ],
)
def test_what_means_nothing_is_said_in_one_line(
    tmp_path: Path, capsys: Capture, checkpoint: Path, arguments: tuple[object, ...], says: str
) -> None:
    assert says in fails(capsys, checkpoint, *arguments, *(() if "--sweep" in arguments else ("-o", tmp_path / "b.pt")))
    assert not list(tmp_path.iterdir())


class Untraceable(TinyResNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_a_network_that_cannot_be_traced(tmp_path: Path, capsys: Capture, checkpoint: Path) -> None:
    spec = f"{__name__}:Untraceable"
    arguments = ("--model", spec, "--method", "l1-filter", "--target", 0.5, "-o", tmp_path / "b.pt")
    assert "--method l1-filter follows the network: torch.fx cannot trace the model" in fails(
        capsys, checkpoint, *arguments, code=1
    )


@pytest.mark.parametrize("key", ["blocks.0.conv1.weight", "blocks.1.bn1.running_var"])
def test_a_network_that_is_not_finite(tmp_path: Path, capsys: Capture, key: str) -> None:
    state = tiny_resnet().state_dict()
    state[key].view(-1)[3] = float("nan")
    torch.save(state, tmp_path / "a.pt")
    arguments = ("--model", SPEC, "--method", "l1-filter", "--target", 0.5, "-o", tmp_path / "b.pt")
    assert f"{key} holds NaN or inf" in fails(capsys, tmp_path / "a.pt", *arguments, code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_train_names_the_command_that_compresses(capsys: Capture) -> None:
    assert main(["train", "--method", "thinet"]) == 2
    assert "starfire prune-mask CHECKPOINT --method thinet" in capsys.readouterr().err


def test_thresholds_take_no_target(tmp_path: Path, capsys: Capture, checkpoint: Path) -> None:
    """s times the standard deviation of each layer: masks as counted by hand."""
    out = tmp_path / "out.pt"
    run(capsys, "prune-mask", checkpoint, "--model", SPEC, "--method", "deep-compression:s=0.8", "--out", out)
    written, before = load(out), torch.load(checkpoint, weights_only=True)
    assert written.masks and written.meta.pruning.target is None
    for key, mask in written.masks.items():
        weight = before[key].double()
        assert torch.equal(mask, weight.abs() >= 0.8 * weight.std(correction=0)), key
    for given in ("--target", "--sweep"):
        said = fails(capsys, checkpoint, "--method", "deep-compression:s=0.8", given, "0.5")
        assert "finds out by itself how much goes; leave it out" in said


def test_methods_that_train_name_those_that_prune(capsys: Capture, checkpoint: Path) -> None:
    for method in ("sss", "rigl"):
        said = fails(capsys, checkpoint, "--method", method)
        assert f"--method {method} trains" in said and "thinet" in said and "--shrink removes" in said


def test_convolutions_that_are_not_there_cannot_be_skipped(capsys: Capture, checkpoint: Path) -> None:
    said = fails(capsys, checkpoint, "--model", SPEC, "--method", "l1-filter:skip=99", "--target", "0.3")
    assert "skip=99 skips convolution 99" in said
