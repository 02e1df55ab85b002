"""`starfire inspect` tells the truth: every figure recomputed here by other means, on files that others' code wrote."""

from __future__ import annotations

import csv
import io
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import save
from starfire_cli.models import build_model
from starfire_cli.pruning.masks import digest

Capture = pytest.CaptureFixture[str]


def as_json(capsys: Capture, *arguments: object, code: int = 0) -> dict[str, Any]:
    assert main(["inspect", "--json", *map(str, arguments)]) == code
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def fails(capsys: Capture, *arguments: object, code: int = 1) -> str:
    assert main(["inspect", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in out
    return err


def window_mask(weight: torch.Tensor, keep: int) -> torch.Tensor:
    """The `keep` largest of each window, by sorting."""
    flat = weight.abs().flatten(2)
    kept = flat.argsort(-1, descending=True)[..., :keep]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, kept, True).reshape(weight.shape)


def pruned_resnet20() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A CIFAR ResNet: 4 of 9 in each window, a tenth of the linear layer's weights gone."""
    torch.manual_seed(0)
    state = build_model("resnet20", num_classes=10).state_dict()
    masks = {k: window_mask(w, 4) for k, w in state.items() if w.ndim == 4}
    fc = state["linear.weight"]
    masks["linear.weight"] = fc.abs() > fc.abs().flatten().sort().values[63]
    return {k: w * masks[k] if k in masks else w for k, w in state.items()}, masks


def test_a_starfire_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    state, masks = pruned_resnet20()
    meta = {
        "model": {"spec": "resnet20", "num_classes": 10, "image_size": 32},
        "data": {"name": "digits", "classes": list("0123456789"), "image_size": 32},
        "pruning": {"method": "window", "fc": "fine", "target": 0.55, "era": [0, 10]},
        "metrics": {"val_top1": 0.9125, "epoch": 12},
    }
    save(tmp_path / "a.pt", state=state, masks=masks, meta=meta)
    found = as_json(capsys, tmp_path / "a.pt")
    assert found["path"] == str(tmp_path / "a.pt") and found["format"] == "starfire"
    assert found["masks"]["present"] is True and found["masks"]["consistent"] is True
    assert found["masks"]["digest"] == digest(masks)
    assert [layer["name"] for layer in found["layers"]] == [k.removesuffix(".weight") for k in masks]
    dead = {key: int((~mask).sum()) for key, mask in masks.items()}
    total = found["total"]
    # 267,696 weights in convolutions and 640 in the linear layer: the 0.27 M of He et al., table 6
    assert total["prunable"] == 267_696 + 640 and total["parameters"] == 269_722
    assert total["zeros"] == sum(dead.values()) == 267_696 * 5 // 9 + 64
    assert total["sparsity_prunable"] == pytest.approx(total["zeros"] / 268_336)
    assert total["sparsity_total"] == pytest.approx(total["zeros"] / 269_722)
    for layer in found["layers"]:
        mask = masks[layer["name"] + ".weight"]
        assert layer["zeros"] == dead[layer["name"] + ".weight"]
        assert layer["sparsity"] == pytest.approx(layer["zeros"] / layer["weights"])
        assert layer["weights"] == mask.numel() and layer["shape"] == list(mask.shape)
        if layer["kind"] == "window":
            assert layer["structure"] == "window 4 of 9"
            assert layer["per_window"] == [0, 0, 0, 0, mask.shape[0] * mask.shape[1], 0, 0, 0, 0, 0]
        assert (layer["dead_kernels"], layer["dead_outputs"], layer["dead_inputs"]) == (0, 0, 0)
    # 40.55 M multiply-accumulates of the convolutions at 32 x 32, and 640 of the linear layer
    assert total["input"] == [3, 32, 32] and total["macs"] == 40_551_040
    convolutions = Fraction(total["macs"] - 640) * 4 / 9
    assert abs(total["macs_effective"] - (convolutions + 576)) < len(masks)
    assert found["meta"] == meta


@pytest.mark.parametrize("kind", ["th", "safetensors", "legacy"])
def test_without_masks_zeros_are_counted(tmp_path: Path, capsys: Capture, kind: str) -> None:
    state, masks = pruned_resnet20()
    path = tmp_path / f"resnet20.{kind}"
    wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 91.7}
    if kind == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(wrapped, path, _use_new_zipfile_serialization=kind == "th")
    for model in ((), ("--model", "resnet20")):
        found = as_json(capsys, path, *model)
        layers = {layer["name"]: layer for layer in found["layers"]}
        assert layers.keys() == {k.removesuffix(".weight") for k in masks}
        assert all(layers[k.removesuffix(".weight")]["zeros"] == int((state[k] == 0).sum()) for k in masks)
        assert found["total"]["parameters"] == 269_722
        assert found["masks"] == {
            "present": False,
            "digest": None,
            "consistent": True,
            "digest_matches": True,
            "disagreements": [],
        }
        assert found["total"]["macs"] == (40_551_040 if model else None)
        if model:
            assert list(layers) == [k.removesuffix(".weight") for k in masks], "model order"


@pytest.mark.parametrize(
    ("name", "classes", "gigamacs", "parameters"),
    # GFLOPS and parameters of torchvision's own tables (their FLOPS are multiply-accumulates)
    [("mobilenet_v2", 1000, 0.30, 3_504_872), ("regnet_x_400mf", 7, 0.41, None)],
)
def test_torchvision(
    tmp_path: Path, capsys: Capture, name: str, classes: int, gigamacs: float, parameters: int | None
) -> None:
    model = torchvision.models.get_model(name, num_classes=classes)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    found = as_json(capsys, tmp_path / "a.pth", "--model", name)
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert [layer["name"] for layer in found["layers"]] == list(modules)
    assert [layer["groups"] for layer in found["layers"]] == [getattr(m, "groups", 1) for m in modules.values()]
    assert found["total"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert parameters in (None, found["total"]["parameters"])
    assert found["total"]["macs"] / 1e9 == pytest.approx(gigamacs, abs=0.012)
    without = as_json(capsys, tmp_path / "a.pth")
    assert without["total"]["prunable"] == found["total"]["prunable"]
    assert without["total"]["parameters"] == found["total"]["parameters"]
    assert any("grouped" in note for note in without["notes"]) is (name != "resnet18")


def test_timm(tmp_path: Path, capsys: Capture) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("convnext_atto", num_classes=5)
    torch.save({"state_dict": model.state_dict(), "arch": "convnext_atto", "epoch": 1}, tmp_path / "a.pth.tar")
    found = as_json(capsys, tmp_path / "a.pth.tar", "--model", "timm:convnext_atto", "--input", "3x64x64")
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert [layer["name"] for layer in found["layers"]] == list(modules)
    assert found["total"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["total"]["input"] == [3, 64, 64] and found["total"]["macs"] > 0


def test_torch_prune(tmp_path: Path, capsys: Capture) -> None:
    model = torchvision.models.resnet18(num_classes=10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions[:5]:
        prune.l1_unstructured(module, "weight", amount=0.5)
    prune.ln_structured(convolutions[5], "weight", amount=0.25, n=2, dim=0)
    prune.ln_structured(convolutions[6], "weight", amount=0.25, n=2, dim=1)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    found = as_json(capsys, tmp_path / "a.pth")
    by_shape = {layer["name"]: layer for layer in found["layers"]}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert by_shape[name]["zeros"] == int((module.weight == 0).sum())
    assert found["masks"]["present"] and found["masks"]["consistent"]
    names = {id(m): n for n, m in model.named_modules()}
    structures = [by_shape[names[id(m)]] for m in convolutions[:8]]
    assert [s["structure"] for s in structures] == [
        *["unstructured"] * 5,
        "output channels",
        "input channels",
        "dense",
    ]
    assert structures[5]["dead_outputs"] == convolutions[5].out_channels // 4
    assert structures[6]["dead_inputs"] == convolutions[6].in_channels // 4


def test_a_mask_and_a_weight_that_disagree(tmp_path: Path, capsys: Capture) -> None:
    state, masks = pruned_resnet20()
    save(tmp_path / "a.pt", state=state, masks=masks, meta={})
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    weight, mask = content["model"]["layer1.0.conv1.weight"], masks["layer1.0.conv1.weight"]
    weight[tuple((~mask).nonzero()[0])] = 1.0
    weight[tuple(mask.nonzero()[0])] = 0.0
    weight[tuple(mask.nonzero()[1])] = 0.0
    torch.save(content, tmp_path / "a.pt")
    found = as_json(capsys, tmp_path / "a.pt")
    assert found["masks"]["consistent"] is False
    assert found["masks"]["disagreements"] == [{"name": "layer1.0.conv1", "dead_not_zero": 1, "alive_but_zero": 2}]
    assert found["total"]["zeros"] == sum(int((~m).sum()) for m in masks.values()), "the mask wins"
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0
    out = capsys.readouterr().out
    assert "layer1.0.conv1: 1 weights that the mask calls dead are not zero" in out
    assert main(["inspect", "--strict", str(tmp_path / "a.pt")]) == 3
    assert "contradict" in capsys.readouterr().err
    content["masks_digest"] = "0" * 64
    torch.save(content, tmp_path / "a.pt")
    assert as_json(capsys, tmp_path / "a.pt")["masks"]["digest_matches"] is False


def test_nan_and_odd_tensors(tmp_path: Path, capsys: Capture) -> None:
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "empty.weight": torch.zeros(0, 3, 3, 3),
        "int.weight": torch.ones(4, 4, dtype=torch.int8),
        "half.weight": torch.randn(4, 4).half(),
        "conv1d.weight": torch.randn(4, 4, 3),
        "scalar": torch.tensor(1.0),
    }
    state["conv.weight"][0, 0, 0] = torch.tensor([float("nan"), float("inf"), 0.0])
    state["half.weight"][0, 0] = float("inf")
    torch.save(state, tmp_path / "a.pt")
    found = as_json(capsys, tmp_path / "a.pt")
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers.keys() == {"conv", "half"}
    assert layers["conv"]["nonfinite"] == 2 and layers["conv"]["zeros"] == 1 and layers["half"]["nonfinite"] == 1
    assert "conv1d.weight" in {left["name"] for left in found["left_out"]}
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0
    assert "conv: 2 live weights are NaN or infinite" in capsys.readouterr().out


def test_nothing_prunable(tmp_path: Path, capsys: Capture) -> None:
    torch.save({"bn.weight": torch.ones(3)}, tmp_path / "a.pt")
    found = as_json(capsys, tmp_path / "a.pt")
    assert found["layers"] == [] and found["total"]["sparsity_prunable"] == 0
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0
    assert "no prunable layer" in capsys.readouterr().out


def test_thousands_of_tensors(tmp_path: Path, capsys: Capture) -> None:
    """All at once, so that a step of quadratic cost would show."""
    state = {f"l{n}.weight": torch.ones(1, 1) if n % 10 == 0 else torch.ones(1) for n in range(4_000)}
    torch.save(state, tmp_path / "a.pt")
    found = as_json(capsys, tmp_path / "a.pt")
    assert len(found["layers"]) == 400 and found["total"]["parameters"] == 4_000


def test_tied_weights_count_once(tmp_path: Path, capsys: Capture) -> None:
    w = torch.randn(5, 5)
    torch.save({"a.weight": w, "b.weight": w}, tmp_path / "a.pt")
    found = as_json(capsys, tmp_path / "a.pt")
    assert found["total"]["parameters"] == found["total"]["prunable"] == 25


def test_csv_and_order(tmp_path: Path, capsys: Capture) -> None:
    state, masks = pruned_resnet20()
    save(tmp_path / "a.pt", state=state, masks=masks, meta={})

    def names(*arguments: str) -> list[str]:
        assert main(["inspect", "--csv", str(tmp_path / "a.pt"), *arguments]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert all(int(row["zeros"]) == round(float(row["sparsity"]) * int(row["weights"])) for row in rows)
        return [row["name"] for row in rows]

    everything = [k.removesuffix(".weight") for k in masks]
    assert names() == everything
    assert names("--sort", "name") == sorted(everything)
    assert names("--sort", "sparsity")[-1] == "linear"
    assert names("--sort", "size")[0] in {f"layer3.{i}.conv{j}" for i in range(3) for j in (1, 2)}
    assert names("--layers", "layer1.*", "--layers", "linear.weight") == [
        *(n for n in everything if n.startswith("layer1")),
        "linear",
    ]


def test_options_that_mean_nothing(tmp_path: Path, capsys: Capture) -> None:
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    path = tmp_path / "a.pt"
    assert "matches none of the 1 layers: a" in fails(capsys, path, "--layers", "x*", code=2)
    assert "model, name, size, sparsity" in fails(capsys, path, "--sort", "up", code=2)
    assert "such as 3x224x224" in fails(capsys, path, "--input", "224", code=2)
    assert "such as 3x224x224" in fails(capsys, path, "--input", "3x0x0", code=2)
    assert "choose one" in fails(capsys, path, "--json", "--csv", code=2)
    assert "unknown model 'resnet2'" in fails(capsys, path, "--model", "resnet2", code=2)
    assert "does not fit --model resnet20: conv1.weight is missing" in fails(capsys, path, "--model", "resnet20")
    assert "no file or run folder" in fails(capsys, tmp_path / "b.pt")


def test_a_model_of_the_metadata_runs_no_code(tmp_path: Path, capsys: Capture) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef net(num_classes): ...\n")
    for spec in ("evil:net", "os:abort", 3, ["x"], {"a": 1}):
        save(tmp_path / "a.pt", state={"a.weight": torch.ones(2, 2)}, masks=None, meta={"model": {"spec": spec}})
        assert len(as_json(capsys, tmp_path / "a.pt")["layers"]) == 1
    for model in ("x", 3):
        save(tmp_path / "a.pt", state={"a.weight": torch.ones(2, 2)}, masks=None, meta={"model": model})
        assert "metadata are damaged: model" in fails(capsys, tmp_path / "a.pt")
    for said in ({}, {"spec": "resnet20", "num_classes": "a"}, {"spec": "resnet20", "shrink": 3}):
        save(tmp_path / "a.pt", state={"a.weight": torch.ones(2, 2)}, masks=None, meta={"model": said})
        assert len(as_json(capsys, tmp_path / "a.pt")["layers"]) == 1
    assert not marker.exists()


def test_names_cannot_paint_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    torch.save({"\x1b[31mred\n.weight": torch.ones(2, 2), "[bold]b[/bold].weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"\x1b[31mred\n" in out and "[bold]b[/bold]" in out


def test_two_checkpoints(tmp_path: Path, capsys: Capture) -> None:
    a = {"x.weight": torch.ones(4, 4), "y.weight": torch.ones(2, 2), "only.weight": torch.ones(2, 3)}
    b = {"x.weight": torch.ones(4, 4), "y.weight": torch.zeros(2, 2), "only.weight": torch.ones(2, 2)}
    a["x.weight"][0] = 0  # rows 1, 2, 3 live
    b["x.weight"][2:] = 0  # rows 0, 1 live
    torch.save(a, tmp_path / "a.pt")
    torch.save(b, tmp_path / "b.pt")
    found = as_json(capsys, tmp_path / "a.pt", tmp_path / "b.pt")
    x, y = found["layers"]
    assert (x["sparsity_a"], x["sparsity_b"], x["revived"], x["died"], x["mask_iou"]) == (0.25, 0.5, 4, 8, 0.25)
    assert (y["sparsity_difference"], y["revived"], y["died"], y["mask_iou"]) == (1.0, 0, 4, 0.0)
    assert [left["name"] for left in found["unmatched"]] == ["only"]
    assert found["total"]["mask_iou"] == pytest.approx(4 / (12 + 4 + 4))
    assert found["total"]["revived"] == 4 and found["total"]["same_weights"] is False
    assert found["predictions"] is None
    assert main(["inspect", str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]) == 0
    assert "4 dead in A and alive in B (revived)" in capsys.readouterr().out
    assert as_json(capsys, tmp_path / "a.pt", tmp_path / "a.pt")["total"]["same_weights"] is True


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_table_fits_the_terminal(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    state, masks = pruned_resnet20()
    save(tmp_path / "a.pt", state=state, masks=masks, meta={})
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    table = [line for line in lines if line.startswith("layer2.0.conv1")]
    assert len(table) == 1 and "0.5556" in table[0]
    assert ("32x16x3x3" in table[0]) is (width >= 80) and ("4:512" in table[0]) is (width >= 200)
