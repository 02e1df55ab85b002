"""Memory of sparse execution: maps beyond 2 GB, threads that take the same, views that negate."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from starfire_cli.models import build_model
from starfire_cli.sparse import SparseNetwork
from starfire_cli.sparse.layout import Layout
from starfire_cli.sparse.linear import FEW, SparseLinear
from starfire_cli.sparse.weights import LiveWeights, order_taps

pytest.importorskip("llvmlite")

MOST = 2**31 - 1  # what an int32 holds


def last_channel(channels: int) -> LiveWeights:
    """A convolution to one channel that reads the last of `channels` alone, at its last tap."""
    alive = np.zeros(channels * 9, np.bool_)
    alive[-1] = True
    one = np.ones(1, np.float32)
    return LiveWeights(shape=(1, channels, 3, 3), groups=1, alive=np.packbits(alive), values=one, bias=0 * one)


@pytest.mark.parametrize(("side", "beside"), [(1024, 1), (4096, 1), (4096, 0), (181, 9), (7, 3)])
def test_offsets_are_exact_up_to_the_largest_map_that_is_taken(side: int, beside: int) -> None:
    layout = Layout(height=side, width=side, above=beside, beside=beside, lanes=8)
    low, high = 1, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if layout.reachable(middle) else (low, middle - 1)
    if low > 1 << 22:
        return  # more channels than weights fit in memory here
    exact = 4 * ((low - 1) * layout.plane + layout.row + 1)
    ordered = order_taps(last_channel(low), lambda c, y, x: 4 * (c * layout.plane + (y - 1) * layout.row + x - 1), low)
    assert int(ordered.offsets[0]) == exact
    whole = exact + 4 * (side - 1) * layout.row  # with the last tile's start
    assert whole <= MOST < whole + 3 * 4 * layout.plane


@pytest.mark.parametrize("inputs", [1, 3, 512, 10_000, 1 << 28])
def test_linear_layers_take_as_many_rows_as_offsets_reach(inputs: int) -> None:
    rows = SparseLinear.max_images(inputs)
    layout = Layout(height=1, width=rows, above=0, beside=0, lanes=16)
    assert rows < FEW or layout.reachable(inputs)
    assert not Layout(height=1, width=2 * rows + 200, above=0, beside=0, lanes=16).reachable(inputs)


def test_rows_beyond_that_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(2), nn.Linear(16, 5)).eval()
    with torch.no_grad():
        net[1].weight[:, ::2] = 0
    images = torch.randn(3, 7, 4, 4)
    expected = net(images)
    monkeypatch.setattr(SparseLinear, "max_images", staticmethod(lambda inputs: 6))
    monkeypatch.setattr("starfire_cli.sparse.choosing._linear", lambda *_: {"taps": 0.0, "dense": 1.0})
    torch.testing.assert_close(SparseNetwork(net)(images), expected)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2, 2), nn.Conv2d(16, 16, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.b(self.pool(torch.relu(self.a(pixels))))
        return maps.mean((2, 3))


@pytest.mark.parametrize("model", [Pooled, lambda: build_model("resnet20", num_classes=10)])
def test_layers_that_read_more_than_2_gb_are_left_to_torch(model: type[nn.Module]) -> None:
    """Nothing of that size is allocated: what torch must do is not measured."""
    choices = SparseNetwork(model().eval()).choices((1, 3, 16384, 16384))
    assert {choice.how for choice in choices} == {"dense", "torch"} or {
        choice.name for choice in choices if choice.how not in ("dense", "torch")
    } <= {"avg_pool", "avgpool", "adaptive_avg_pool2d", "linear"}
    assert not any(choice.seconds for choice in choices if choice.name != "linear")


@pytest.mark.parametrize("images", [1, 3])
def test_what_is_left_to_torch_is_still_right(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("starfire_cli.sparse.layout.LARGEST", 7_000)  # some layers of each kind are beyond it
    for net, side in ((Pooled().eval(), 16), (build_model("resnet20", num_classes=10).eval(), 16)):
        pixels = torch.randn(images, 3, side, side)
        sparse = SparseNetwork(net)
        with torch.no_grad():
            torch.testing.assert_close(sparse(pixels), net(pixels), rtol=1e-4, atol=1e-5)
        forced = [choice for choice in sparse.choices((images, 3, side, side)) if not choice.seconds]
        assert any(choice.how == "dense" for choice in forced)


def test_threads_never_take_the_same_memory_or_find_it_gone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    sparse = SparseNetwork(net)
    pixels = torch.randn(2, 3, 8, 8)
    expected = sparse(pixels)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(sparse, [pixels] * 400))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(one, expected) for one in found)


def test_memory_that_another_thread_took_between_look_and_take() -> None:
    sparse = SparseNetwork(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)).eval())
    pixels = torch.randn(2, 3, 8, 8)
    expected = sparse(pixels)
    plan = sparse._plan((2, 3, 8, 8)).plan

    class Emptied(list[object]):
        """As another thread leaves it: something was there when it was looked at."""

        def __bool__(self) -> bool:
            return True

    plan._free = Emptied()  # type: ignore[assignment]
    assert torch.equal(sparse(pixels), expected)


@pytest.mark.parametrize("images", [1, 3, 5])
def test_views_that_negate_and_zeros_without_memory(images: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    sparse = SparseNetwork(net)
    memory = torch.randn(images, 3, 8, 8)
    complex_ = torch.view_as_complex(torch.stack([memory, memory], -1)).conj()
    with torch.no_grad():
        for view in (torch._neg_view(memory), complex_.imag, torch._efficientzerotensor(images, 3, 8, 8)):
            torch.testing.assert_close(sparse(view), net(view.clone().resolve_neg()), rtol=1e-5, atol=1e-6)
        live = LiveWeights.of(net[3].weight[:, :, None, None], net[3].bias, 1)
        flat = torch._neg_view(torch.randn(images, 144))
        torch.testing.assert_close(SparseLinear(live, images)(flat), net[3](flat), rtol=1e-5, atol=1e-6)
        weight = torch._neg_view(torch.ones(2, 3, 1, 1))
        assert LiveWeights.of(weight, torch._efficientzerotensor(2), 1).values.tolist() == [-1.0] * 6
