"""Models by name: known sizes and keys, images they take, and what is said when a spec is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from starfire_cli.errors import BadOption
from starfire_cli.models import Normalized, build_model, model_names

# He et al. (2016), table 6, counts in millions; the exact ones are those of the published PyTorch port.
CIFAR_PARAMETERS = {
    "resnet20": 269722,
    "resnet32": 464154,
    "resnet44": 658586,
    "resnet56": 853018,
    "resnet110": 1727962,
}


@pytest.mark.parametrize("name", CIFAR_PARAMETERS)
def test_cifar_resnets_have_the_known_size_and_depth(name: str) -> None:
    model = build_model(name, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == CIFAR_PARAMETERS[name]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == int(name.removeprefix("resnet"))


@pytest.mark.parametrize(
    ("name", "millions"), [("wrn40-4", 8.9), ("wrn16-8", 11.0), ("wrn28-10", 36.5), ("wrn28-2", 1.5)]
)
def test_wide_resnets_have_the_published_size_and_depth(name: str, millions: float) -> None:
    """Zagoruyko and Komodakis (2016), table 4; WRN-28-2's is that of Oliver et al. (2018)."""
    with torch.device("meta"):
        model = build_model(name, num_classes=10)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    depth = int(name.removeprefix("wrn").partition("-")[0])
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(m.kernel_size == (3, 3) for m in layers if isinstance(m, nn.Conv2d)) == depth - 3  # 6n + 1 of 6n + 4


def test_cifar_resnet_keys_are_those_of_the_published_port() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", *(f"bn1.{n}" for n in norm), "linear.weight", "linear.bias"}
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            for i in (1, 2):
                expected.add(f"layer{stage}.{block}.conv{i}.weight")
                expected |= {f"layer{stage}.{block}.bn{i}.{n}" for n in norm}
    assert set(build_model("resnet20", num_classes=10).state_dict()) == expected


def test_cifar_shortcut_is_option_a() -> None:
    """With every convolution at zero only the shortcuts are left: a literal loop over stages."""
    model = build_model("resnet32", num_classes=64).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module is not model.conv1:
            nn.init.zeros_(module.weight)
    nn.init.eye_(model.linear.weight)
    nn.init.zeros_(model.linear.bias)
    x = torch.randn(2, 3, 12, 12)
    y = F.relu(model.bn1(model.conv1(x)))
    expected = torch.zeros(2, 64, 3, 3)
    for channel in range(16):
        for row in range(3):
            for column in range(3):
                expected[:, 24 + channel, row, column] = y[:, channel, 4 * row, 4 * column]
    torch.testing.assert_close(model(x), expected.mean((2, 3)))


@pytest.mark.parametrize("size", [8, 9, 16, 33])
def test_cifar_resnets_take_any_size(size: int) -> None:
    assert build_model("resnet20", num_classes=7, image_size=size).eval()(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_v1_strides_in_the_first_convolution_and_keeps_torchvisions_keys() -> None:
    v1, v15 = build_model("resnet50-v1", num_classes=5), build_model("resnet50", num_classes=5)
    assert {k: t.shape for k, t in v1.state_dict().items()} == {k: t.shape for k, t in v15.state_dict().items()}
    for stage in (2, 3, 4):
        first, first15 = (m.get_submodule(f"layer{stage}.0") for m in (v1, v15))
        assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))
        assert (first15.conv1.stride, first15.conv2.stride) == ((1, 1), (2, 2))
    assert v1.layer1[0].conv1.stride == (1, 1)
    v1.load_state_dict(v15.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(v1.eval()(x), v15.eval()(x))


def test_names() -> None:
    names = model_names()
    assert names == sorted(names)
    assert {"resnet20", "resnet110", "resnet50-v1", "resnet50", "vgg16_bn", "mobilenet_v2", "vit_b_16"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    model = build_model(name, num_classes=4, image_size=80).train()
    assert isinstance(model(torch.zeros(2, 3, 80, 80)), torch.Tensor)
    assert not any("aux" in key.lower() for key in model.state_dict())


def test_transformers_are_built_for_the_image_size() -> None:
    assert build_model("vit_b_32", num_classes=3, image_size=64).image_size == 64
    with pytest.raises(BadOption, match=r"'vit_b_32' cannot be built for 50-pixel"):
        build_model("vit_b_32", num_classes=3, image_size=50)


def test_the_trial_image_changes_nothing() -> None:
    torch.manual_seed(0)
    untried = build_model("resnet20", num_classes=3)
    torch.manual_seed(0)
    tried = build_model("resnet20", num_classes=3, image_size=16)
    assert all(
        torch.equal(a, b) for a, b in zip(untried.state_dict().values(), tried.state_dict().values(), strict=True)
    )
    assert all(m.training for m in tried.modules())


@pytest.mark.parametrize(
    ("spec", "size", "said"),
    [
        ("resnet51", None, "unknown model 'resnet51'; did you mean resnet5"),
        ("qqqq", None, "unknown model 'qqqq'; there are "),
        ("alexnet", 32, "'alexnet' does not take 32-pixel images"),
        ("nowhere.at_all:net", None, "there is no module 'nowhere'"),
        ("math:nope", None, "math has no 'nope'; it has "),
        ("math:pi", None, "pi is a float, not a class or function"),
        ("math:sqrt", None, r"sqrt\(num_classes=10\) failed with TypeError"),
        ("builtins:dict", None, "dict returned a dict, not a torch.nn.Module"),
    ],
)
def test_wrong_specs_get_one_clear_line(spec: str, size: int | None, said: str) -> None:
    with pytest.raises(BadOption, match=said) as caught:
        build_model(spec, num_classes=10, image_size=size)
    assert "\n" not in str(caught.value)


def test_no_classes() -> None:
    with pytest.raises(BadOption, match="0 classes"):
        build_model("resnet20", num_classes=0)


OWN = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
def wide(num_classes):
    return Net(num_classes + 1)
def pair(num_classes):
    class Pair(Net):
        def forward(self, x):
            return super().forward(x), x
    return Pair(num_classes)
class inner:
    net = Net
"""


def test_own_models_come_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets_for_test.py").write_text(OWN)
    (tmp_path / "broken_for_test.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("Net", "inner.net"):
        model = build_model(f"own_nets_for_test:{name}", num_classes=6, image_size=8)
        assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 6)
    with pytest.raises(BadOption, match=r"gives \(1, 7\) for one 8-pixel image, not \(1, 6\)"):
        build_model("own_nets_for_test:wide", num_classes=6, image_size=8)
    with pytest.raises(BadOption, match="returns a tuple"):
        build_model("own_nets_for_test:pair", num_classes=6, image_size=8)
    with pytest.raises(BadOption, match=r"importing broken_for_test failed with ModuleNotFoundError.*not_there_at_all"):
        build_model("broken_for_test:Net", num_classes=6)


def test_timm_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BadOption, match=r"needs timm.*pip install 'starfire-cli\[timm\]'"):
        build_model("timm:resnet10t", num_classes=10)


def test_timm_models() -> None:
    pytest.importorskip("timm")
    model = build_model("timm:resnet10t", num_classes=3, image_size=32)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    sized = build_model("timm:vit_tiny_patch16_224", num_classes=3, image_size=32)
    assert sized.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(BadOption, match="did you mean timm:resnet"):
        build_model("timm:resnet10q", num_classes=3)
    with pytest.raises(BadOption, match="timm has no model 'hf-hub:"):
        build_model("timm:hf-hub:someone/something", num_classes=3)


def test_normalized_is_torchvisions_normalize_before_the_net() -> None:
    net = build_model("resnet20", num_classes=3).eval()
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    model = Normalized(net, mean, std)
    x = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(model(x), net(torchvision.transforms.Normalize(mean, std)(x)))
    assert set(model.state_dict()) == {f"net.{key}" for key in net.state_dict()}
    assert model.net is net
