"""Networks as exported steps against torch in float64, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfire_cli.errors import StarfireError
from tests.helpers.exported import run_steps

pytest.importorskip("llvmlite")


class Made(nn.Module):
    """A convolution, any function, a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 6, side: int = 9) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.function = function
        with torch.no_grad():
            size = function(torch.zeros(1, channels, side, side)).flatten(1).shape[1]
        self.fc = nn.Linear(size, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.function(self.conv(x)), 1))


def shuffled(x: Tensor) -> Tensor:
    N, C, H, W = x.shape
    return x.view(N, 2, C // 2, H, W).transpose(1, 2).reshape(N, C, H, W)


def halves(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return torch.cat([right, left * 2.0], 1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky": lambda x: F.leaky_relu(x, negative_slope=0.3),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sum": lambda x: x + torch.sigmoid(x),
    "difference": lambda x: torch.sigmoid(x) - x,
    "product": lambda x: x * torch.tanh(x),
    "squeeze-excite": lambda x: torch.sigmoid(x.mean((2, 3), keepdim=True)) * x,
    "constants": lambda x: (1.5 * x - 0.25) / 3 + 2,
    "mean": lambda x: x.mean((2, 3)),
    "mean of dims": lambda x: F.relu(x).mean(dim=[-1, -2]),
    "max pool below zero": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "max pool ceil": lambda x: F.max_pool2d(x, 2, stride=2, ceil_mode=True),
    "max pool dilated": lambda x: F.max_pool2d(x, 2, stride=1, dilation=2),
    "average pool": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
    "average pool without padding": lambda x: F.avg_pool2d(x, 3, stride=3, padding=1, count_include_pad=False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 4)),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, 3),
    "shuffle": shuffled,
    "halves": halves,
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)) * 1.5,
    "pad by reflection": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "upsample": lambda x: F.interpolate(x, scale_factor=2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "slice": lambda x: x[:, 1:, ::2, 3:],
    "unshuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "cat of vectors": lambda x: torch.cat((x.mean((2, 3)), x.flatten(1)), dim=1),
    "vectors": lambda x: F.relu(x.mean((2, 3))) + x.mean((2, 3)),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def check(model: nn.Module, images: Tensor, **how: int) -> None:
    model.eval()
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(images.double())
    found = run_steps(model, images, **how)
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators(name: str) -> None:
    check(Made(FUNCTIONS[name]), torch.rand(2, 3, 9, 9) * 4 - 2, lanes=4)


class Mixed(nn.Module):
    """Strides, groups, BatchNorm in front of its convolution, a residual sum and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.after = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(8 * 9, 20), nn.Linear(20, 5)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        y = F.relu(self.after(self.depthwise(F.relu(x))))
        x = self.pool(F.relu(x + self.point(y)))
        return self.fc2(self.drop(F.hardswish(self.fc1(x.view(x.size(0), -1)))))


@pytest.mark.parametrize(("lanes", "threads"), [(4, 1), (8, 1), (8, 3)])
def test_a_network_of_many_kinds(lanes: int, threads: int) -> None:
    model = Mixed()
    for norm in (model.norm, model.after):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    check(model, torch.randn(3, 3, 12, 12), lanes=lanes, threads=threads)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 4, stride=4),
        nn.Conv2d(3, 6, 7, stride=3, padding=2),
        nn.Conv2d(3, 6, 3, stride=(1, 2), padding=1, groups=3),
        nn.Conv2d(3, 6, 3, stride=(3, 1), dilation=2),
        nn.Conv2d(3, 6, (3, 4), padding="same", dilation=2),
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 6, 3, padding=2, stride=2, padding_mode="circular"),
        nn.Conv2d(3, 6, 2, padding="valid"),
    ],
    ids=str,
)
def test_rare_convolutions(layer: nn.Module) -> None:
    size = layer(torch.zeros(1, 3, 11, 13)).numel()
    check(
        nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(size, 3)), torch.rand(1, 3, 11, 13)
    )


class Next(nn.Module):
    """A block of ConvNeXt: layer norm, linear layers of each pixel, a scale of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 6, 3, padding=1, groups=3)
        self.norm = nn.LayerNorm(6, eps=1e-6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.last, self.head = nn.LayerNorm(6), nn.Linear(6, 4)
        for norm in (self.norm, self.last):
            nn.init.uniform_(norm.weight)
            nn.init.uniform_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        x = x + self.scale * y
        x = F.layer_norm(x.permute(0, 2, 3, 1), (6,), self.last.weight).permute(0, 3, 1, 2)
        return self.head(self.last(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))


class Called(nn.Module):
    """Layers that are called as functions: a standardised convolution, a blur, a linear layer; at last BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scaled, self.shift = nn.Parameter(torch.randn(6, 2, 3, 3)), nn.Parameter(torch.randn(6))
        self.register_buffer("blur", torch.rand(1, 1, 3, 3).expand(6, 1, 3, 3).contiguous())
        self.weight, self.bias = nn.Parameter(torch.randn(5, 6 * 16)), nn.Parameter(torch.randn(5))
        self.norm = nn.BatchNorm1d(5)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scaled / self.scaled.std((1, 2, 3), keepdim=True)
        x = F.conv2d(F.relu(self.conv(x)), weight, self.shift, padding=1, groups=2)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.blur, stride=2, groups=6)
        return self.norm(F.linear(x.flatten(1), self.weight, self.bias))


def test_layers_as_functions() -> None:
    check(Called(), torch.rand(2, 3, 9, 9))


def test_layer_norm_and_linear_layers_of_pixels() -> None:
    check(Next(), torch.rand(2, 3, 9, 7))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x: torch.cumsum(x, 1), "cumsum: there is no loop for cumsum"),
        (lambda x: F.softmax(x, 1), "softmax: there is no loop for softmax"),
        (lambda x: x * x.mean((2, 3), keepdim=True).mean(1, keepdim=True), "there is no loop for"),
        (lambda x: F.gelu(x, approximate="tanh"), "there is no loop for gelu"),
    ],
)
def test_what_has_no_loop_is_refused_by_name(function: Callable[[Tensor], Tensor], told: str) -> None:
    with pytest.raises(StarfireError, match=told):
        run_steps(Made(function), torch.rand(1, 3, 9, 9))


def test_layers_with_several_results_are_refused() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv2d(3, 4, 1), nn.LSTM(4, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            found, _ = self.lstm(self.conv(x).flatten(2).transpose(1, 2))
            return found[:, -1]

    with pytest.raises(StarfireError, match="lstm: there is no loop"):
        run_steps(Recurrent(), torch.rand(1, 3, 3, 3))


def test_other_results_than_logits_are_refused() -> None:
    with pytest.raises(StarfireError, match=r"the network returns \(1, 4, 9, 9\), not one tensor"):
        run_steps(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.rand(1, 3, 9, 9))


def test_images_that_do_not_fit_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 49, 2))
    with pytest.raises(StarfireError, match="does not take images of 3 x 8 x 8"):
        run_steps(model, torch.rand(1, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "densenet121",
     "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "alexnet", "convnext_tiny", "mnasnet0_5"],
)  # fmt: skip
def test_networks_of_torchvision(name: str) -> None:
    from torchvision import models

    how = {"init_weights": False} if name == "googlenet" else {}
    check(getattr(models, name)(weights=None, num_classes=7, **how), torch.rand(1, 3, 64, 64))
