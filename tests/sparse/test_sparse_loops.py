"""Each sparse loop against torch's own convolution in float64, over shapes, strides, groups and patterns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.sparse import compiler, sparsify
from starfire_cli.sparse.convolution import TILINGS
from starfire_cli.sparse.layout import Layout, cut
from starfire_cli.sparse.linear import SparseLinear
from starfire_cli.sparse.plan import Choice, ExecutionPlan, Maps
from starfire_cli.sparse.tracing import Operation, TracedNetwork
from starfire_cli.sparse.weights import LiveWeights

pytest.importorskip("llvmlite")


@dataclass(frozen=True)
class Case:
    batch: int
    groups: int
    C: int
    K: int
    H: int
    W: int
    size: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    dilation: int
    density: float
    whole: bool
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    size = draw(st.sampled_from(((1, 1), (3, 3), (2, 2), (3, 1), (5, 5), (7, 7), (1, 4))))
    dilation = draw(st.sampled_from((1, 1, 2)))
    need = [dilation * (n - 1) + 1 for n in size]
    return Case(
        batch=draw(st.sampled_from((1, 2, 5))),
        groups=groups,
        C=groups * draw(st.integers(1, 40 // groups)),
        K=groups * draw(st.integers(1, 24)),
        H=draw(st.integers(need[0], 34)),
        W=draw(st.integers(need[1], 34)),
        size=size,
        stride=draw(st.sampled_from((1, 1, 2))),
        padding=(draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))),
        dilation=dilation,
        density=draw(st.sampled_from((0.0, 0.1, 0.3, 1.0))),
        whole=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def _choice(operation: Operation, how: str, tiling: int) -> Choice:
    if how == "dense" and operation.folded is not None:
        return Choice(name=operation.name, how="dense", seconds={})
    if operation.work is None:
        return Choice(name=operation.name, how="torch" if operation.folded is None else "taps", seconds={})
    kind = "kernels" if how in operation.work.kinds() and how == "kernels" else "taps"
    tilings = TILINGS[kind][compiler.lanes()]
    return Choice(name=operation.name, how=kind, seconds={}, tiling=tilings[tiling % len(tilings)])


def run(model: nn.Module, images: Tensor, how: str, tiling: int = 0) -> Tensor:
    """What `model` gives, every convolution done by the loop `how` where that can do it, else by `taps`.

    Args:
        model: in eval mode.
        images: what it gets.
        how: `taps`, `kernels` or `dense`.
        tiling: the number of the loop's tiling, counted over and over.
    """
    network = TracedNetwork(model)
    shapes = network.shapes(tuple(images.shape))
    operations = network.operations(shapes)
    choices = [_choice(operation, how, tiling) for operation in operations]
    with torch.inference_mode():
        return ExecutionPlan(network, tuple(images.shape), operations, Maps(operations, shapes), choices).run(images)


def pruned(case: Case) -> nn.Conv2d:
    generator = torch.Generator().manual_seed(case.seed)
    conv = nn.Conv2d(
        case.C, case.K, case.size, case.stride, case.padding, case.dilation, case.groups, dtype=torch.float32
    )
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
        shape = (*conv.weight.shape[:2], 1, 1) if case.whole else conv.weight.shape
        conv.weight *= torch.rand(shape, generator=generator) < case.density
        conv.bias.copy_(torch.randn(case.K, generator=generator))
    return conv.eval()


def agree(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    scale = expected.abs().max().clamp(min=1.0)
    assert (found.double() - expected).abs().max() / scale < 1e-5


@pytest.mark.parametrize("how", ["taps", "kernels"])
@settings(max_examples=25)
@given(case=cases())
def test_a_convolution_gives_what_torch_gives_in_float64(how: str, case: Case) -> None:
    conv = pruned(case)
    images = torch.randn(case.batch, case.C, case.H, case.W, generator=torch.Generator().manual_seed(case.seed))
    agree(run(conv, images, how, tiling=case.seed), conv.double()(images.double()))


class Residual(nn.Module):
    """What is fused: BatchNorm, addition, ReLU and ReLU6, pooling, a mean at the end."""

    def __init__(self, C: int, six: bool, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, C, 3, stride, 1, bias=False), nn.BatchNorm2d(C)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.one, self.norm2 = nn.Conv2d(C, 2 * C, 1, bias=False), nn.BatchNorm2d(2 * C)
        self.side, self.norm3 = nn.Conv2d(C, 2 * C, 3, padding=1), nn.BatchNorm2d(2 * C)
        self.relu = nn.ReLU6() if six else nn.ReLU(inplace=True)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2 * C, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm1(self.first(x))))
        x = self.relu(self.norm2(self.one(x)) + self.norm3(self.side(x)))
        return self.linear(torch.flatten(self.mean(x), 1))


@pytest.mark.parametrize("how", ["kernels", "dense"])
@settings(max_examples=5)
@given(
    C=st.integers(1, 20), six=st.booleans(), stride=st.sampled_from((1, 2)), batch=st.sampled_from((1, 4, 6)),
    side=st.integers(5, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_follows_a_convolution_is_done_with_it(
    how: str, C: int, six: bool, stride: int, batch: int, side: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Residual(C, six, stride).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
                module.bias.normal_()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight *= torch.rand_like(module.weight) < 0.4
    images = torch.randn(batch, 3, side, side + 3)
    found = run(model, images, how)
    with torch.no_grad():
        agree(found, model.double()(images.double()))


@settings(max_examples=15)
@given(
    rows=st.integers(1, 40), I=st.integers(1, 70), O=st.integers(1, 50), density=st.sampled_from((0.0, 0.2, 1.0)),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_linear_layer_gives_what_torch_gives_in_float64(rows: int, I: int, O: int, density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(O, I, generator=generator) * (torch.rand(O, I, generator=generator) < density)
    bias, images = torch.randn(O, generator=generator), torch.randn(rows, I, generator=generator)
    live = LiveWeights.of(weight[:, :, None, None], bias, 1)
    agree(SparseLinear(live, rows)(images), images.double() @ weight.double().T + bias)


@given(height=st.integers(1, 60), vectors=st.integers(1, 20), most=st.integers(1, 14), wide=st.integers(1, 14))
def test_tiles_cover_every_vector_once(height: int, vectors: int, most: int, wide: int) -> None:
    seen = np.zeros((height, vectors), int)
    for tiles in cut(height, vectors, most=most, most_rows=14, most_vectors=wide):
        assert tiles.rows * tiles.vectors <= most and tiles.vectors <= wide
        for y, x in tiles.places:
            seen[y : y + tiles.rows, x : x + tiles.vectors] += 1
    assert (seen == 1).all()


def test_what_lies_around_the_pixels_stays_zero() -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]
    model = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2]).eval()
    network = TracedNetwork(model)
    images = torch.ones(2, 4, 5, 5)
    shapes = network.shapes((2, 4, 5, 5))
    operations = network.operations(shapes)
    choices = [_choice(o, "taps", 0) for o in operations]
    plan = ExecutionPlan(network, (2, 4, 5, 5), operations, Maps(operations, shapes), choices)
    with torch.inference_mode():
        first = plan.run(images)
        assert torch.equal(plan.run(images), first)  # in memory that was used before
        agree(first, model.double()(images.double()))


class Halves(nn.Module):
    """A map of which torch takes views that live longer than it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.middle = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        kept, x = self.first(x).chunk(2, 1)
        for conv in self.middle:
            x = torch.sigmoid(conv(x))
        return self.last(torch.cat([kept, x], 1))


def test_a_view_of_a_map_is_not_written_over() -> None:
    torch.manual_seed(0)
    model = Halves().eval()
    images = torch.randn(2, 3, 9, 9)
    found = run(model, images, "taps")
    with torch.no_grad():
        agree(found, model.double()(images.double()))


class Three(nn.Module):
    """Three convolutions, put together by `way(first, second, third, images)`."""

    def __init__(self, way: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.c, self.d = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.a, self.c, self.d, x)


def sum_then_halved(a: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
    y = a(x)
    z = c(y)
    t = y + z
    t.mul_(0.5)
    return d(t) + z


def contiguous_changed(a: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
    y = a(x).contiguous()
    y.add_(1)
    return d(y)


def flattened_changed(a: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
    y = a(x)
    y.flatten(2).mul_(2)
    return c(y)


def added_in_place(a: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
    y = a(x)
    before = y
    y = y.add_(c(y))
    return y * before


def activation_in_place(a: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
    y = a(x)
    return d(nn.functional.relu(y, True)) + y


def viewed(a: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
    return c(a(x)).view(x.shape[0], -1)


def thinned_and_changed(a: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
    y = a(x)
    y.flatten(2).mul_(2)
    return nn.functional.pad(c(y)[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))


def returned_twice(a: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
    y = torch.relu(a(x))
    return torch.cat([y, torch.relu(c(y))])


@pytest.mark.parametrize("how", ["taps", "dense", None])
@pytest.mark.parametrize(
    "way",
    [
        sum_then_halved,
        contiguous_changed,
        flattened_changed,
        added_in_place,
        activation_in_place,
        viewed,
        thinned_and_changed,
        returned_twice,
    ],
)
def test_what_is_changed_in_place_is_changed_for_all(way: Callable[..., Tensor], how: str | None) -> None:
    torch.manual_seed(0)
    model = Three(way).eval()
    images = torch.randn(2, 3, 16, 16)
    if how is None:
        found = sparsify(model)(images)
    elif TracedNetwork(model).in_loops:
        found = run(model, images, how)
    else:
        return
    with torch.no_grad():
        agree(found, model.double()(images.double()))


def test_a_model_that_torch_reads_wrong_is_refused() -> None:
    def rebound(a: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
        y = a(x)
        t = y.transpose(2, 3)
        t *= 2
        return d(y)

    with pytest.raises(StarfireError, match="`x \\+= y`"):
        sparsify(Three(rebound))


def test_no_images_through_a_linear_layer_are_no_images() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    for how in ("taps", "dense"):
        assert run(model, torch.zeros(0, 3, 8, 8), how).shape == (0, 5)


def test_two_outputs_of_which_one_is_used_inside() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = nn.functional.relu(self.a(input=x))
            return y, self.c(y)

    model, images = Both().eval(), torch.randn(1, 3, 5, 5)
    for how in ("taps", "dense"):
        found = run(model, images, how)
        with torch.no_grad():
            for own, expected in zip(found, model(images), strict=True):
                agree(own, expected.double())


def test_a_map_of_many_pixels_says_where_each_is() -> None:
    layout = Layout(height=3, width=5, above=1, beside=2, lanes=4)
    memory = torch.zeros(2, layout.floats(3))
    layout.view(memory, 0, 3).copy_(torch.arange(90.0).reshape(2, 3, 3, 5) + 1)
    assert layout.row == 8 and int(layout.mask().sum()) == -15
    assert memory.count_nonzero() == 90
    assert memory[0, layout.start + layout.plane + layout.row + 2] == 15 + 5 + 2 + 1


FORCED = """
import torch
from starfire_cli.sparse import compiler
from tests.sparse.test_sparse_loops import Case, agree, pruned, run
assert compiler.lanes() == {lanes}, compiler.lanes()
for how in ("taps", "kernels"):
    for size, stride, W in (((3, 3), 1, 17), ((3, 3), 2, 18), ((1, 1), 1, 9), ((3, 3), 1, 7), ((1, 1), 1, 3)):
        case = Case(2, 1, 20, 13, 15, W, size, stride, (size[0] // 2,) * 2, 1, 0.3, True, 0)
        images = torch.randn(2, 20, 15, W)
        for tiling in range(3):
            agree(run(pruned(case), images, how, tiling), pruned(case).double()(images.double()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "lanes"), [("x86-64-v3", 8), ("x86-64", 4)])
def test_code_for_older_processors_gives_the_same(cpu: str, lanes: int, root: os.PathLike[str]) -> None:
    if not {"x86_64", "AMD64"} & {os.uname().machine}:
        pytest.skip("not an x86 processor")
    code = [sys.executable, "-c", FORCED.format(lanes=lanes)]
    done = subprocess.run(code, env=os.environ | {"STARFIRE_CPU": cpu}, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
