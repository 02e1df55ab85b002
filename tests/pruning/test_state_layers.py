"""The layers of a bare state dict are told from its other tensors; the model itself is the judge."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from starfire_cli.cli import main
from starfire_cli.pruning.layers import layers_of_model, layers_of_state
from starfire_cli.pruning.state_layers import UNCLEAR, sort_state
from starfire_cli.text import by_number

Capture = pytest.CaptureFixture[str]


def generator(out: int, *, bias: bool) -> nn.Module:
    """DCGAN's: transposed convolutions all through."""
    widths = (100, 64, 32, 16)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=bias), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(16, out, 4, 2, 1, bias=bias))


def discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1, bias=False),
        nn.Conv2d(16, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 1, 4, bias=False),
    )


class UNet(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.down1 = self._double(3, 16)
        self.down2 = self._double(16, 32)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, 2, bias=bias)
        self.conv1 = self._double(32, 16)
        self.out = nn.Conv2d(16, 2, 1)

    def _double(self, before: int, after: int) -> nn.Module:
        first, second = nn.Conv2d(before, after, 3, bias=False), nn.Conv2d(after, after, 3, bias=False)
        return nn.Sequential(first, nn.BatchNorm2d(after), nn.ReLU(), second, nn.BatchNorm2d(after))


def translator(norm: type[nn.Module]) -> nn.Module:
    """As CycleGAN's: 3x3 windows on the way down and up, without biases."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, bias=False),
        norm(16),
        nn.Conv2d(16, 32, 3, 2, bias=False),
        norm(32),
        nn.ConvTranspose2d(32, 16, 3, 2, bias=False),
        norm(16),
        nn.ConvTranspose2d(16, 8, 3, 2, bias=False),
        norm(8),
        nn.Conv2d(8, 3, 7),
    )


class Mixed(nn.Module):
    """What has two or four axes and is no layer, among what is one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.depth = nn.Conv2d(16, 16, 7, groups=16)
        self.point = nn.Conv2d(16, 16, 1, bias=False)
        self.qkv = nn.Linear(16, 48, bias=False)
        self.attn = nn.MultiheadAttention(16, 2)
        self.fc = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)
        self.pos_embed = nn.Parameter(torch.randn(1, 4, 4, 16))
        self.cls_token = nn.Parameter(torch.randn(1, 16))
        self.token_embedding = nn.Embedding(30, 16)
        self.pos = nn.Embedding(20, 16)
        self.species = nn.Embedding(40, 16)
        self.norm = nn.LayerNorm([4, 4])
        self.rnn = nn.LSTM(16, 16)
        self.deconv = nn.ConvTranspose2d(16, 16, 3)
        self.grouped = nn.ConvTranspose2d(16, 4, 4, groups=2)
        self.blur = nn.ConvTranspose2d(16, 16, 4, groups=16, bias=False)
        self.register_buffer("relative_coords_table", torch.randn(1, 7, 7, 2))
        self.register_buffer("grid", torch.arange(24.0).reshape(4, 6))
        self.register_buffer("index", torch.arange(16).reshape(4, 4))


NETWORKS = {
    "generator": lambda: generator(3, bias=False),
    "generator with biases": lambda: generator(3, bias=True),
    "generator of grey images": lambda: generator(1, bias=False),
    "discriminator": discriminator,
    "unet": lambda: UNet(bias=True),
    "unet without biases": lambda: UNet(bias=False),
    "translator": lambda: translator(nn.BatchNorm2d),
    "translator without statistics": lambda: translator(nn.InstanceNorm2d),
    "mixed": Mixed,
} | {
    name: lambda name=name: torchvision.models.get_model(name, weights=None)
    for name in (
        *("swin_v2_t", "vit_b_32", "convnext_tiny", "densenet121", "mnasnet0_5", "squeezenet1_1", "regnet_y_400mf"),
        *("shufflenet_v2_x0_5", "maxvit_t", "googlenet"),
    )
}


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize("name", NETWORKS)
def test_as_the_model_says(name: str) -> None:
    """In the model's order, and sorted by name as safetensors files come."""
    with torch.device("meta" if name in ("vit_b_32", "convnext_tiny") else "cpu"):
        model = NETWORKS[name]()
    state = {k: torch.zeros(v.shape) if v.is_meta else v for k, v in model.state_dict().items()}
    expected = {layer.key for layer in layers_of_model(model)[0]}
    for order in (list(state), sorted(state, key=by_number)):
        found = sort_state({key: state[key] for key in order})
        assert set(found.layers) == expected
        assert list(found.layers) == [key for key in order if key in expected]
        rest = {k for k, v in state.items() if v.ndim >= 2 and v.is_floating_point()} - expected
        assert {key for key, _ in found.left_out} == rest and all(reason for _, reason in found.left_out)


def test_what_cannot_be_told_asks_for_the_model(tmp_path: Path, capsys: Capture) -> None:
    state = {
        "conv.weight": torch.randn(8, 3, 3, 3),
        "conv.bias": torch.zeros(8),
        "mid.weight": torch.randn(8, 8, 2, 2),  # down or up, with the same shape and the same bias
        "mid.bias": torch.zeros(8),
        "fc.weight": torch.randn(4, 8) / 4,
        "fc.bias": torch.zeros(4),
        "kinds.weight": torch.randn(9, 8) / 4,  # an embedding, or a linear layer without bias
    }
    assert set(sort_state(state).unclear) == {"mid.weight", "kinds.weight"}
    torch.save(state, tmp_path / "a.pt")
    assert main(["inspect", "--json", str(tmp_path / "a.pt")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in found["layers"]] == ["conv", "fc"]
    assert {left["name"]: left["reason"].startswith(UNCLEAR) for left in found["left_out"]} == {
        "mid.weight": True,
        "kinds.weight": True,
    }
    assert any("mid.weight, kinds.weight; give --model" in note for note in found["notes"])
    assert main(["prune-mask", str(tmp_path / "a.pt"), "--target", "0.5", "-o", str(tmp_path / "b.pt")]) == 0
    out = capsys.readouterr().out
    assert "not pruned (the file does not tell a convolution from a transposed one): mid.weight" in out
    torch.save({key: state[key] for key in ("mid.weight", "mid.bias")}, tmp_path / "c.pt")
    assert main(["prune-mask", str(tmp_path / "c.pt"), "--target", "0.5"]) == 1
    assert "--model SPEC says what these are: mid.weight" in capsys.readouterr().err


def test_a_mask_says_that_somebody_pruned_it() -> None:
    state: dict[str, Tensor] = {"table": torch.randn(4, 6), "up.weight": torch.randn(8, 4, 2, 2)}
    assert sort_state(state).layers == ()
    assert sort_state(state, {"table"}).layers == ("table",)
    with_bias = {**state, "up.bias": torch.zeros(4)}
    assert sort_state(with_bias, {"up.weight"}).layers == (), "the bias contradicts"


def test_a_file_that_calls_nothing_weight() -> None:
    state = {"w1": torch.randn(8, 6), "kernel": torch.randn(4, 3, 3, 3), "pos_table": torch.randn(5, 6)}
    assert [layer.name for layer in layers_of_state(state)] == ["w1", "kernel"]
    assert [layer.name for layer in layers_of_state({**state, "fc.weight": torch.randn(3, 6)})] == ["fc"]


def test_swapped_axes_of_matrices() -> None:
    """As GPT-2's Conv1D has them: (inputs, outputs)."""
    state = {
        "c_fc.weight": torch.randn(8, 32),
        "c_fc.bias": torch.zeros(32),
        "c_proj.weight": torch.randn(8, 8),
        "c_proj.bias": torch.zeros(8),
    }
    assert layers_of_state(state) == []
    assert sort_state(state).unclear == ("c_proj.weight",)


def test_a_state_dict_without_names_has_no_layers() -> None:
    assert sort_state({}).layers == ()
