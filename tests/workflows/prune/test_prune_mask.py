"""`starfire prune-mask` prunes what the paper says, whatever the file, and writes what every other command takes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.utils import prune

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.models import build_model
from starfire_cli.networks.restore import rebuild_model
from starfire_cli.workflows.prune.oneshot import recalibrate

Capture = pytest.CaptureFixture[str]
State = dict[str, torch.Tensor]


def run(capsys: Capture, *arguments: object) -> str:
    assert main(["prune-mask", *map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def fails(capsys: Capture, *arguments: object, code: int) -> str:
    assert main(["prune-mask", *map(str, arguments)]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def resnet20() -> State:
    torch.manual_seed(0)
    return build_model("resnet20", num_classes=10).state_dict()


def kept_by_ck(weight: torch.Tensor, target: float) -> torch.Tensor:
    """Algorithm 1, a channel at a time: of the K kernels that read it, the ceil(K * target) with smallest max go."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    K, C = weight.shape[:2]
    for c in range(C):
        order = sorted(range(K), key=lambda k: (float(weight[k, c].abs().max()), k))
        for k in order[: math.ceil(K * target - 1e-9)]:
            mask[k, c] = False
    return mask


def kept_by_window(weight: torch.Tensor, target: float) -> torch.Tensor:
    """Algorithm 3: of each window's weights the ceil(9 * target) smallest go; 1 x 1 convolutions as in Algorithm 1."""
    if weight.shape[2:] == (1, 1):
        return kept_by_ck(weight, target)
    flat = weight.abs().flatten(2)
    gone = flat.argsort(dim=-1, stable=True)[..., : math.ceil(flat.shape[-1] * target - 1e-9)]
    return torch.ones_like(flat, dtype=torch.bool).scatter_(-1, gone, False).reshape(weight.shape)


def kept_by_fine(weight: torch.Tensor, target: float) -> torch.Tensor:
    """All weights of the layer compete; the largest of each output stays."""
    best = weight.abs().argmax(1)
    order = weight.abs().flatten().argsort(dim=0, stable=True).tolist()
    width = weight.shape[1]
    order = [i for i in order if best[i // width] != i % width]
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[order[: math.ceil(weight.numel() * target - 1e-9)]] = False
    return mask.reshape(weight.shape)


@pytest.mark.parametrize(("method", "rule"), [("ck", kept_by_ck), ("window", kept_by_window)])
@pytest.mark.parametrize("target", [0.3, 0.7])
def test_the_papers_rules(tmp_path: Path, capsys: Capture, method: str, rule: Any, target: float) -> None:
    state = resnet20()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.th")
    before = (tmp_path / "a.th").read_bytes()
    run(capsys, tmp_path / "a.th", "--method", method, "--target", target, "--out", tmp_path / "b.pt")
    assert (tmp_path / "a.th").read_bytes() == before
    found = load(tmp_path / "b.pt")
    assert found.format == "starfire" and list(found.state) == list(state)
    assert found.masks is not None
    assert list(found.masks) == [k for k, v in state.items() if v.ndim in (2, 4)]
    for key, tensor in state.items():
        if key in found.masks:
            expected = (rule if tensor.ndim == 4 else kept_by_fine)(tensor, target)
            assert torch.equal(found.masks[key], expected), key
            assert torch.equal(found.state[key], tensor * expected)
        else:
            assert torch.equal(found.state[key], tensor)
    pruning = found.meta.values["pruning"]
    assert (pruning["method"], pruning["fc"], pruning["target"], pruning["era"]) == (method, "fine", target, None)
    assert found.meta.values["source"] == {"path": str(tmp_path / "a.th"), "format": "torch"}


def test_the_same_masks_from_every_format(tmp_path: Path, capsys: Capture) -> None:
    state = {k: v.contiguous() for k, v in resnet20().items()}
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"model": {f"_orig_mod.{k}": v for k, v in state.items()}}, tmp_path / "compiled.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "plain.safetensors")
    save(tmp_path / "own.pt", state=state, masks=None, meta={})
    torch.save(build_model("resnet20", num_classes=10), tmp_path / "whole.pt")
    torch.save(nn.DataParallel(_with(state)), tmp_path / "whole.pt")
    digests = set()
    for path in sorted(tmp_path.iterdir()):
        out = json.loads(
            run(capsys, path, "--method", "intra", "--target", 0.6, "--out", tmp_path / "out.pt", "--json")
        )
        assert out["out"] == str(tmp_path / "out.pt")
        digests.add(out["result"]["masks"]["digest"])
    assert len(digests) == 1


def _with(state: State) -> nn.Module:
    model = build_model("resnet20", num_classes=10)
    model.load_state_dict(state)
    return model


def test_what_is_dead_stays_dead(tmp_path: Path, capsys: Capture) -> None:
    model = _with(resnet20())
    for module in (model.layer1[0].conv1, model.layer2[0].conv1):
        prune.random_unstructured(module, "weight", amount=0.2)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    first = load(tmp_path / "a.pt").masks
    run(capsys, tmp_path / "a.pt", "--method", "ck", "--target", 0.3, "--only", "layer1.*", "-o", tmp_path / "b.pt")
    second = load(tmp_path / "b.pt").masks
    run(capsys, tmp_path / "b.pt", "--method", "window", "--target", 0.6, "-o", tmp_path / "c.pt")
    third = load(tmp_path / "c.pt").masks
    assert first is not None and second is not None and third is not None
    assert first.keys() < second.keys() < third.keys()
    assert all(bool((second[k] <= first[k]).all()) for k in first)
    assert all(bool((third[k] <= second[k]).all()) for k in second)
    assert torch.equal(second["layer2.0.conv1.weight"], first["layer2.0.conv1.weight"]), "not in --only"


def test_zeros_of_a_file_without_masks_stay_dead(tmp_path: Path, capsys: Capture) -> None:
    state = resnet20()
    half = torch.rand(state["layer1.0.conv1.weight"].shape) > 0.5
    state["layer1.0.conv1.weight"] *= half
    state["layer1.1.conv1.weight"][0, 0, 0, 0] = 0  # one zero is chance
    state["layer1.2.conv1.weight"].zero_()  # such a layer was pruned away, as others are pruned, too
    state["linear.weight"].zero_()  # and a classifier like that was never trained
    torch.save(state, tmp_path / "a.pt")
    out = run(capsys, tmp_path / "a.pt", "--method", "window", "--target", 0.3, "-o", tmp_path / "b.pt")
    masks = load(tmp_path / "b.pt").masks
    assert masks is not None
    assert not masks["layer1.0.conv1.weight"][~half].any()
    assert set((~masks["layer1.1.conv1.weight"]).flatten(2).sum(-1).flatten().tolist()) == {3}
    assert not masks["layer1.2.conv1.weight"].any()
    assert masks["linear.weight"].any()
    assert "weights that were zero already count as pruned" in out


def test_a_layer_that_is_dead_as_a_whole_is_no_hindrance(tmp_path: Path, capsys: Capture) -> None:
    state = resnet20()
    masks = {"layer1.0.conv1.weight": torch.zeros(16, 16, 3, 3, dtype=torch.bool)}
    save(tmp_path / "a.pt", state=state, masks=masks, meta={})
    out = run(capsys, tmp_path / "a.pt", "--method", "ck", "--target", 0.5, "-o", tmp_path / "b.pt")
    assert "not pruned (all of it was dead already): layer1.0.conv1" in out
    found = load(tmp_path / "b.pt").masks
    assert found is not None and not found["layer1.0.conv1.weight"].any() and len(found) == 20


def test_keep_dense_and_the_default_name(tmp_path: Path, capsys: Capture) -> None:
    torch.save(resnet20(), tmp_path / "net.th")
    out = run(
        capsys,
        tmp_path / "net.th",
        *("--method", "window", "--max-nonzero", 2, "--fc", "dense", "--target", 0.5, "--keep-dense", "conv1"),
    )
    found = load(tmp_path / "net-window-0.5.pt")
    assert found.masks is not None and "conv1.weight" not in found.masks and "linear.weight" not in found.masks
    assert set(found.masks["layer1.0.conv1.weight"].flatten(2).sum(-1).flatten().tolist()) == {2}
    assert "not pruned (--keep-dense conv1): conv1" in out
    assert found.meta.values["pruning"]["method"] == "window:max_nonzero=2"


def test_depthwise_needs_a_model(tmp_path: Path, capsys: Capture) -> None:
    model = torchvision.models.mobilenet_v2(num_classes=3)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    arguments = (tmp_path / "a.pt", "--target", 0.5, "-o", tmp_path / "b.pt")
    text = fails(capsys, *arguments, "--method", "ck", code=2)
    assert "features.1.conv.0.0 (and 16 more) has the shape of a depthwise convolution" in text
    assert not (tmp_path / "b.pt").exists()
    run(capsys, *arguments, "--method", "ck", "--model", "mobilenet_v2")
    found = load(tmp_path / "b.pt")
    depthwise = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert found.masks is not None and len(depthwise) == 17
    assert not {f"{name}.weight" for name in depthwise} & found.masks.keys()
    assert found.meta.values["model"] == {"spec": "mobilenet_v2", "num_classes": 3, "image_size": 224}
    run(capsys, *arguments, "--method", "window")  # which treats all windows alike


def test_grouped_convolutions_compete_within_their_group(tmp_path: Path, capsys: Capture) -> None:
    model = torchvision.models.regnet_x_400mf(num_classes=3)
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 4)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    arguments = ("--method", "ck", "--target", 0.5, "--only", name, "-o", tmp_path / "b.pt")
    run(capsys, tmp_path / "a.pt", "--model", "regnet_x_400mf", *arguments)
    found = load(tmp_path / "b.pt").masks
    assert found is not None and list(found) == [f"{name}.weight"]
    weights, masks = (x.chunk(4) for x in (layer.weight.detach(), found[f"{name}.weight"]))
    assert all(torch.equal(mask, kept_by_ck(weight, 0.5)) for weight, mask in zip(weights, masks, strict=True))


def test_half_precision_stays(tmp_path: Path, capsys: Capture) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in resnet20().items()}
    torch.save(state, tmp_path / "a.pt")
    run(capsys, tmp_path / "a.pt", "--method", "ck", "--target", 0.5, "-o", tmp_path / "b.pt")
    found = load(tmp_path / "b.pt").state
    assert all(found[k].dtype == v.dtype for k, v in state.items())


def test_options_that_mean_nothing(tmp_path: Path, capsys: Capture) -> None:
    torch.save(resnet20(), tmp_path / "a.pt")
    path, out = tmp_path / "a.pt", tmp_path / "b.pt"
    assert "--target T" in fails(capsys, path, code=2)
    assert "--target T" in fails(capsys, path, "--target", 0.5, "--sweep", "0.1:0.9:0.1", code=2)
    assert "0 to below 1" in fails(capsys, path, "--target", 1, code=2)
    assert "unknown pruning method 'kc'" in fails(capsys, path, "--method", "kc", "--target", 0.5, code=2)
    assert "leaves nothing of conv1" in fails(capsys, path, "--method", "window", "--target", 0.95, code=2)
    assert "matches no prunable layer" in fails(capsys, path, "--target", 0.5, "--only", "nothing*", code=2)
    assert "there is no folder" in fails(capsys, path, "--target", 0.5, "-o", tmp_path / "no" / "b.pt", code=1)
    assert "starfire compress" in fails(capsys, path, "--target", 0.5, "-o", tmp_path / "b.safetensors", code=2)
    for option in (["--eliminate"], ["--shrink"], ["--recalibrate", 3], ["--evaluate"], ["--data", "digits"]):
        assert f"{option[0]} needs the network" in fails(capsys, path, "--target", 0.5, *option, "-o", out, code=2)
    assert "--sweep needs the network" in fails(capsys, path, "--sweep", "0.5,0.6", code=2)
    for sweep in ("0.1:0.9", "a:b:c", "0.9:0.1:0.1", "0.1:0.9:0", "", "0.5,", "1:2:3:4", "nan:1:0.1"):
        assert "error" in fails(capsys, path, "--sweep", sweep, code=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt"]


def test_weights_that_cannot_be_pruned(tmp_path: Path, capsys: Capture) -> None:
    state = resnet20()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "a.pt")
    text = fails(capsys, tmp_path / "a.pt", "--method", "ck", "--target", 0.5, "-o", tmp_path / "b.pt", code=1)
    assert "layer1.0.conv1.weight holds NaN or inf" in text
    torch.save({"bn.weight": torch.ones(3)}, tmp_path / "a.pt")
    assert "no prunable layer" in fails(capsys, tmp_path / "a.pt", "--target", 0.5, code=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_recalibration_is_the_mean_over_batches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    batches = [(torch.rand(6, 3, 8, 8), torch.zeros(6)) for _ in range(5)]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert recalibrate(net, net, iter(batches), 3) == 3
    maps = [conv2d(images, net[0].weight, net[0].bias) for images, _ in batches[:3]]
    means = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    variances = torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0)
    assert torch.allclose(net[1].running_mean, means, atol=1e-6)
    assert torch.allclose(net[1].running_var, variances, atol=1e-6)
    assert not net.training and net[1].momentum == 0.1
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert all(k.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for k in changed)


def vgg(num_classes: int) -> nn.Module:
    """conv - bn - relu, three times, pool, linear: dead channels can be told and removed."""
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 12), (12, 16)):
        layers += [nn.Conv2d(before, after, 3, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


def dead_channels() -> tuple[nn.Module, State]:
    """A network whose weights of some output channels are zero; BatchNorm gives those a constant."""
    torch.manual_seed(0)
    model = vgg(10).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[3].weight[5:9] = 0
        model[6].weight[10:] = 0
    return model, model.state_dict()


def test_eliminate_and_shrink(tmp_path: Path, capsys: Capture) -> None:
    model, state = dead_channels()
    torch.save(state, tmp_path / "a.pt")
    spec = (
        "--model",
        "tests.workflows.prune.test_prune_mask:vgg",
        "--image-size",
        20,
        "--method",
        "dense",
        "--target",
        0,
    )
    images = torch.rand(4, 3, 20, 20)

    def outputs(path: Path) -> torch.Tensor:
        net = rebuild_model(load(path), "tests.workflows.prune.test_prune_mask:vgg").net
        with torch.no_grad():
            return net(images)

    with torch.no_grad():
        expected = model(images)
    out = json.loads(
        run(capsys, tmp_path / "a.pt", *spec, "--fc", "fine", "--eliminate", "-o", tmp_path / "b.pt", "--json")
    )
    assert out["eliminated_weights"] == 6 * 10, "six dead channels before ten neurons"
    assert torch.allclose(outputs(tmp_path / "b.pt"), expected, atol=1e-5)
    run(capsys, tmp_path / "b.pt", *spec, "--method", "ck", "--fc", "fine", "--shrink", "-o", tmp_path / "c.pt")
    small = load(tmp_path / "c.pt")
    shapes = {k: tuple(v.shape) for k, v in small.state.items() if v.ndim > 1}
    assert shapes == {
        "0.weight": (5, 3, 3, 3),
        "3.weight": (8, 5, 3, 3),
        "6.weight": (10, 8, 3, 3),
        "11.weight": (10, 10),
    }
    assert torch.allclose(outputs(tmp_path / "c.pt"), expected, atol=1e-5)
    assert (
        main(["inspect", "--json", str(tmp_path / "c.pt"), "--model", "tests.workflows.prune.test_prune_mask:vgg"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [tuple(layer["shape"]) for layer in found["layers"]] == list(shapes.values())
