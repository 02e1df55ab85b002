from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

from starfire_cli.errors import BadOption
from starfire_cli.pruning import Layer, layers_of_model, layers_of_state, select


class Net(nn.Module):
    """One of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8)
        self.grouped = nn.Conv2d(16, 8, (1, 3), groups=4)
        self.point = nn.Conv2d(8, 8, 1)
        self.bn = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.table = nn.Embedding(10, 8)
        self.normed = parametrizations.weight_norm(nn.Linear(8, 8))
        self.pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", amount=3)  # type: ignore[no-untyped-call]
        self.head = nn.Linear(8, 10)
        self.tied = nn.Linear(8, 10)
        self.tied.weight = self.head.weight


def test_each_parameter_has_its_kind_or_a_reason() -> None:
    layers, left_out = layers_of_model(Net())
    assert {layer.name: (layer.kind, layer.shape, layer.groups) for layer in layers} == {
        "stem": ("window", (8, 3, 3, 3), 1),
        "depthwise": ("window", (16, 1, 3, 3), 8),
        "grouped": ("window", (8, 4, 1, 3), 4),
        "point": ("pointwise", (8, 8, 1, 1), 1),
        "head": ("linear", (10, 8), 1),
    }
    assert [layer.depthwise for layer in layers] == [False, True, False, False, False]
    assert [layer.window for layer in layers] == [9, 9, 3, 1, 1]
    reasons = dict(left_out)
    assert "ConvTranspose2d" in reasons["up.weight"]
    assert "Embedding" in reasons["table.weight"]
    assert "parametrization" in reasons["normed"]
    assert "parametrization" in reasons["pruned"]
    assert not [name for name in reasons if "parametrizations" in name]
    assert reasons["tied"] == "shares its weight with head"


def test_a_model_that_is_one_layer() -> None:
    (layer,), left_out = layers_of_model(nn.Linear(3, 2))
    assert (layer.key, layer.kind, layer.weights) == ("weight", "linear", 6)
    assert left_out == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_a_bare_state_dict_gives_the_same_layers_but_for_the_groups(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None)
    layers, _ = layers_of_model(model)
    assert layers_of_state(model.state_dict()) == [_ungrouped(layer) for layer in layers]


def _ungrouped(layer: Layer) -> Layer:
    return Layer(name=layer.name, key=layer.key, kind=layer.kind, shape=layer.shape)


def test_a_state_dict_also_holds_other_things() -> None:
    state = {
        "conv.weight": torch.ones(4, 3, 3, 3),
        "conv.bias": torch.ones(4),
        "steps": torch.ones(2, 2, dtype=torch.int64),
        "empty": torch.ones(0, 4),
        "volume.weight": torch.ones(4, 3, 3, 3, 3),
        "proj": torch.ones(4, 3),
    }
    assert [(layer.name, layer.key, layer.kind) for layer in layers_of_state(state)] == [
        ("conv", "conv.weight", "window"),
    ]


def names(layers: list[Layer]) -> list[str]:
    return [layer.name for layer in layers]


def test_globs_choose_by_name_or_key() -> None:
    layers, _ = layers_of_model(torchvision.models.resnet18(weights=None))
    chosen, left_out = select(layers, keep_dense=["conv1", "*downsample*"])
    assert len(chosen) == len(layers) - 4
    assert dict(left_out)["conv1"] == "--keep-dense conv1"
    assert dict(left_out)["layer2.0.downsample.0"] == "--keep-dense *downsample*"
    assert names(select(layers, only=["fc.weight"])[0]) == ["fc"]
    chosen, left_out = select(layers, only=["layer4.*"], keep_dense=["*.conv2"])
    assert names(chosen) == ["layer4.0.conv1", "layer4.0.downsample.0", "layer4.1.conv1"]
    assert dict(left_out)["fc"] == "not in --only layer4.*"
    assert select(layers)[0] == layers


@pytest.mark.parametrize("option", ["only", "keep_dense"])
def test_a_glob_without_a_match_is_an_error_that_shows_names(option: str) -> None:
    layers, _ = layers_of_model(Net())
    with pytest.raises(BadOption) as error:
        select(layers, **{option: ["stem", "block*"]})
    text = str(error.value)
    assert f"--{option.replace('_', '-')} 'block*'" in text
    assert "stem, depthwise" in text
    assert not text.endswith("...")
