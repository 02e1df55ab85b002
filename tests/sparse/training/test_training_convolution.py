"""The three passes of a convolution over live weights: torch's own gradients, whatever the shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from starfire_cli.sparse import compiler
from starfire_cli.sparse.training.choosing import choose_ways
from starfire_cli.sparse.training.convolution import IN_TORCH, PASSES, LiveConvolution, way_of
from starfire_cli.sparse.training.geometry import ConvShape
from starfire_cli.sparse.training.maps import from_map, new_map, padded, to_map

pytest.importorskip("llvmlite")

Result = tuple[Tensor, Tensor, Tensor]


def masked(module: nn.Conv2d, live: float, *, whole: bool, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    K, C, _, _ = shape = module.weight.shape
    mask = torch.rand((K, C, 1, 1) if whole else shape, generator=generator) < live
    mask = mask.expand(shape).clone()
    with torch.no_grad():
        module.weight *= mask
    return mask


def layer_of(module: nn.Conv2d, mask: Tensor | None, pixels: tuple[int, int], images: int) -> LiveConvolution:
    assert isinstance(module.padding, tuple)
    shape = ConvShape(
        size=module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        pixels=pixels,
    )
    layer = LiveConvolution(module, shape, padded(images, compiler.lanes()))
    layer.update(mask)
    return layer


def passes(layer: LiveConvolution, x: Tensor, dy: Tensor) -> Result:
    N, held = len(x), layer.images
    source, gradient = to_map(x, held), to_map(dy, held)
    y = layer.forward(source, N)
    assert not y[..., N:].count_nonzero(), "behind the last image all is zero"
    into = new_map(*source.shape).zero_()
    return (
        from_map(y, N),
        from_map(layer.input_gradient(gradient, into), N),
        layer.weight_gradient(source, gradient),
    )


def torchs(module: nn.Conv2d, x: Tensor, dy: Tensor, mask: Tensor) -> Result:
    x = x.clone().requires_grad_()
    y = module(x)
    (dx, dw) = torch.autograd.grad(y, [x, module.weight], dy)
    return y.detach(), dx, dw * mask


def check(found: Result, expected: Result, mask: Tensor) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= 1e-5 * max(1e-6, float(b.abs().max()))
    assert not found[2][~mask].count_nonzero()


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, tuple[int, int], int, float, bool]:
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    size, dilation = (number(1, 4), number(1, 4)), (number(1, 2), number(1, 2))
    padding = number(0, 2), number(0, 2)
    rows, columns = (
        max(number(1, 9), d * (k - 1) + 1 - 2 * p) for k, d, p in zip(size, dilation, padding, strict=True)
    )
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    channels = groups * number(1, 5)
    module = nn.Conv2d(
        channels,
        groups * number(1, 5),
        size,
        stride=(number(1, 3), number(1, 3)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    return (
        module.to(memory_format=layout),
        (rows, columns),
        draw(st.sampled_from([1, 3, 17, 32])),
        draw(st.sampled_from([0.0, 0.2, 0.7, 1.0])),
        draw(st.booleans()),
    )


@given(convolutions())
@settings(max_examples=10)
def test_any_convolution(case: tuple[nn.Conv2d, tuple[int, int], int, float, bool]) -> None:
    module, pixels, images, live, whole = case
    mask = masked(module, live, whole=whole)
    x = torch.randn(images, module.in_channels, *pixels)
    layer = layer_of(module, mask, pixels, images)
    with torch.no_grad():
        dy = torch.randn_like(module(x))
    check(passes(layer, x, dy), torchs(module, x, dy, mask), mask)


CASES: dict[str, Callable[[], tuple[nn.Conv2d, int]]] = {
    "3x3": lambda: (nn.Conv2d(24, 20, 3, padding=1, bias=False), 9),
    "stride-2": lambda: (nn.Conv2d(16, 12, 3, stride=2, padding=1, bias=False), 8),
    "1x1": lambda: (nn.Conv2d(70, 40, 1, bias=False), 5),
    "1x1-stride-2": lambda: (nn.Conv2d(12, 16, 1, stride=2, bias=False), 7),
    "depthwise": lambda: (nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), 6),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("whole", [True, False], ids=["kernels", "weights"])
def test_all_ways_agree(name: str, whole: bool) -> None:
    module, side = CASES[name]()
    mask = masked(module, 0.4, whole=whole)
    x = torch.randn(18, module.in_channels, side, side)
    expected = torchs(module, x, torch.ones_like(module(x)), mask)
    dy = torch.ones_like(expected[0])
    layer = layer_of(module, mask, (side, side), len(x))
    ways = {way.text for name in PASSES for way in [*layer.candidates(name), IN_TORCH]}
    for text in ways:
        layer.ways = {name: way_of(text) for name in PASSES}
        assert {layer.way(name).text for name in PASSES} == {text}
        check(passes(layer, x, dy), expected, mask)


@pytest.mark.parametrize("name", CASES)
def test_threads_change_no_bit(name: str) -> None:
    module, side = CASES[name]()
    mask = masked(module, 0.5, whole=name == "3x3")
    x = torch.randn(16, module.in_channels, side, side)
    dy = torch.randn_like(module(x).detach())
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(passes(layer_of(module, mask, (side, side), len(x)), x, dy))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("whole", [True, False], ids=["kernels", "weights"])
def test_entries_that_are_dead_by_now_change_no_bit(whole: bool) -> None:
    """In an era the loops may go over weights that have died since: they are zero."""
    module = nn.Conv2d(20, 24, 3, padding=1, bias=False)
    stale = masked(module, 0.6, whole=whole)
    now = stale & masked(module, 0.5, whole=whole, seed=1)
    x, dy = torch.randn(16, 20, 8, 8), torch.randn(16, 24, 8, 8)
    layer = layer_of(module, stale, (8, 8), 16)
    before = passes(layer, x, dy)
    layer.update(now, whole)
    after = passes(layer, x, dy)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert torch.equal(before[2] * now, after[2])


def test_a_gradient_is_added_to_another() -> None:
    module = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    layer = layer_of(module, masked(module, 0.5, whole=True), (5, 5), 16)
    dy, before = torch.randn(16, 8, 5, 5), torch.randn(16, 8, 5, 5)
    alone = from_map(layer.input_gradient(to_map(dy, 16), None), 16)
    for way in [*layer.candidates("input"), IN_TORCH]:
        layer.ways["input"] = way
        total = from_map(layer.input_gradient(to_map(dy, 16), to_map(before, 16)), 16)
        torch.testing.assert_close(total, alone + before, rtol=1e-5, atol=1e-5)


def test_the_fastest_way_is_kept_for_all_layers_of_a_kind() -> None:
    modules = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]
    layers = [layer_of(module, None, (6, 6), 16) for module in modules]
    choose_ways(layers)
    assert layers[0].ways == layers[1].ways and set(layers[0].ways) == set(PASSES)
    x = torch.randn(16, 8, 6, 6)
    for module, layer in zip(modules, layers, strict=True):
        y = from_map(layer.forward(to_map(x, 16), 16), 16)
        torch.testing.assert_close(y, F.conv2d(x, module.weight, module.bias, padding=1), rtol=1e-5, atol=1e-5)
