"""Reparametrised weights, which a file holds in parts, are read as torch computes them, and never pruned as parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import starfire_cli
from starfire_cli.cli import main
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.file import load

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:.*spectral_norm.*")
Capture = pytest.CaptureFixture[str]
Wrap = Callable[[nn.Module], nn.Module]


class Masked(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masked(module: nn.Module) -> nn.Module:
    mask = (torch.rand(module.weight.shape) > 0.4).float()
    return parametrize.register_parametrization(module, "weight", Masked(mask))


def pruned_direction(module: nn.Module) -> nn.Module:
    return prune.random_unstructured(weight_norm(module), "weight_v", amount=0.4)  # type: ignore[no-untyped-call]


WRAPS: dict[str, Wrap] = {
    "old weight_norm": weight_norm,
    "old weight_norm of all": lambda m: weight_norm(m, dim=None),
    "old weight_norm, axis 1": lambda m: weight_norm(m, dim=1),
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of all": lambda m: parametrizations.weight_norm(m, dim=None),
    "old spectral_norm": spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "both": lambda m: parametrizations.spectral_norm(parametrizations.weight_norm(m)),
    "weight_norm, masked": lambda m: masked(parametrizations.weight_norm(m)),
    "spectral_norm, masked": lambda m: masked(parametrizations.spectral_norm(m)),
    "masked, spectral_norm": lambda m: parametrizations.spectral_norm(masked(m)),
    "weight_norm, pruned": pruned_direction,
}


class Net(nn.Module):
    """A convolution, a depthwise one, one as wide as deep, a transposed one and a linear layer."""

    def __init__(self, wrap: Wrap, classes: int = 10) -> None:
        super().__init__()
        self.conv = wrap(nn.Conv2d(3, 8, 3))
        self.bn = nn.BatchNorm2d(8)
        self.depth = wrap(nn.Conv2d(8, 8, 3, groups=8))
        self.square = wrap(nn.Conv2d(8, 8, 3, bias=False))
        self.up = wrap(nn.ConvTranspose2d(8, 8, 2))
        self.fc = wrap(nn.Linear(8, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = self.up(torch.relu(self.square(torch.relu(self.depth(x)))))
        return self.fc(x.mean((2, 3)))


def plain(num_classes: int) -> nn.Module:
    return Net(lambda module: module, num_classes)


def old_weight_norm(num_classes: int) -> nn.Module:
    return Net(weight_norm, num_classes)


def new_spectral_norm(num_classes: int) -> nn.Module:
    return Net(parametrizations.spectral_norm, num_classes)


def orthogonal(num_classes: int) -> nn.Module:
    return Net(parametrizations.orthogonal, num_classes)


def trained(net: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in eval mode as a few steps of training leave it, images, and its outputs."""
    images = torch.rand(4, 3, 12, 12)
    for _ in range(3):
        net(images)  # in training spectral_norm iterates
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    with torch.no_grad():
        net.eval()(images)  # the hooks of prune come after those of weight_norm, so that one pass is behind
        return net, images, net(images)


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_plain_network_computes_the_same(tmp_path: Path, wrap: str) -> None:
    torch.manual_seed(0)
    net, images, expected = trained(Net(WRAPS[wrap]))
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "a.pt")
    found = load(tmp_path / "a.pt")
    other = plain(10)
    other.load_state_dict(found.state)
    with torch.no_grad():
        assert torch.allclose(other.eval()(images), expected, atol=1e-5)
    if "masked" in wrap or "pruned" in wrap:
        assert found.masks is not None
        assert all(torch.equal(mask, other.get_parameter(key) != 0) for key, mask in found.masks.items())
        assert found.masks.keys() == {k for k in other.state_dict() if k.endswith("weight") and k != "bn.weight"}


def test_half_precision_and_a_direction_of_length_zero(tmp_path: Path) -> None:
    module = weight_norm(nn.Linear(4, 3))
    with torch.no_grad():
        module.weight_v[1] = 0
    torch.save({f"fc.{k}": v.half() for k, v in module.state_dict().items()}, tmp_path / "a.pt")
    weight = load(tmp_path / "a.pt").state["fc.weight"]
    v, g = module.weight_v.detach().half().float(), module.weight_g.detach().half().float()
    expected = torch.stack([g[0] * v[0] / v[0].norm(), torch.zeros(4), g[2] * v[2] / v[2].norm()])
    assert weight.dtype == torch.float16 and torch.allclose(weight.float(), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["old_weight_norm", "new_spectral_norm", "orthogonal"])
def test_a_model_that_computes_them_itself_gets_the_parts(tmp_path: Path, capsys: Capture, name: str) -> None:
    torch.manual_seed(0)
    spec = f"tests.formats.checkpoint.test_reparametrised:{name}"
    net, images, expected = trained(globals()[name](10))
    torch.save(net.state_dict(), tmp_path / "a.pt")
    ours = starfire_cli.load_model(tmp_path / "a.pt", model=spec, num_classes=10, mean=(0, 0, 0), std=(1, 1, 1))
    with torch.no_grad():
        assert torch.equal(ours(images), expected)
    assert main(["prune-mask", str(tmp_path / "a.pt"), "--model", spec, "--target", "0.5"]) == 1
    assert "computed by a parametrization" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_folded_weights_are_pruned_and_run(tmp_path: Path, capsys: Capture) -> None:
    torch.manual_seed(0)
    net, images, _ = trained(old_weight_norm(10))
    torch.save(net.state_dict(), tmp_path / "a.pt")
    pruned = tmp_path / "b.pt"
    assert main(["prune-mask", str(tmp_path / "a.pt"), "--target", "0.5", "-o", str(pruned), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {layer["name"] for layer in found["result"]["layers"]} == {"conv", "depth", "square", "fc"}
    ours = starfire_cli.load_model(
        pruned,
        model="tests.formats.checkpoint.test_reparametrised:plain",
        num_classes=10,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    assert bool(torch.isfinite(ours(images)).all())
    with pytest.raises(StarfireError, match=r"conv\.weight_g is missing .*computes conv\.weight from parts"):
        starfire_cli.load_model(
            pruned,
            model="tests.formats.checkpoint.test_reparametrised:old_weight_norm",
            num_classes=10,
            mean=(0, 0, 0),
            std=(1, 1, 1),
        )


def parts_of_unknown_rules() -> dict[str, dict[str, Tensor]]:
    fc = nn.Linear(6, 6)
    return {
        "orthogonal": dict(parametrizations.orthogonal(fc).state_dict()),
        "a rule without tensors": {"parametrizations.weight.original": torch.randn(6, 6)},
        "low rank": {
            "parametrizations.weight.original0": torch.randn(6, 2),
            "parametrizations.weight.original1": torch.randn(2, 6),
        },
        "spectral_norm without v": {"weight_orig": torch.randn(6, 6), "weight_u": torch.randn(6)},
        "spectral_norm of zeros": {
            "weight_orig": torch.zeros(6, 6),
            "weight_u": torch.randn(6),
            "weight_v": torch.randn(6),
        },
        "a gain of another shape": {"weight_g": torch.randn(6, 6), "weight_v": torch.randn(6, 6)},
    }


@pytest.mark.parametrize("rule", parts_of_unknown_rules())
def test_parts_of_unknown_rules_are_never_pruned(tmp_path: Path, capsys: Capture, rule: str) -> None:
    parts = {f"fc.{key}": value.clone() for key, value in parts_of_unknown_rules()[rule].items()}
    conv: dict[str, Any] = {"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.zeros(4)}
    torch.save({**conv, **parts}, tmp_path / "a.pt")
    assert main(["prune-mask", str(tmp_path / "a.pt"), "--target", "0.5", "-o", str(tmp_path / "b.pt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in found["result"]["layers"]] == ["conv"]
    left = {entry["name"] for entry in found["not_pruned"]}
    assert left >= {key for key, value in parts.items() if value.ndim >= 2}
    written = load(tmp_path / "b.pt").state
    assert all(torch.equal(written[key], value) for key, value in parts.items())
