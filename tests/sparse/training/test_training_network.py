"""Networks whose steps go over live weights: the same results, gradients and statistics as dense ones."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from starfire_cli.errors import StarfireError
from starfire_cli.sparse.training import SparseTraining
from starfire_cli.sparse.training.reading import Segment, read
from tests.tiny import branching, residual

pytest.importorskip("llvmlite")

CLASSES = 10


class Block(nn.Module):
    """What a residual network may do: sums in either order, a sum without BatchNorm, concatenation, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(12), nn.BatchNorm2d(12, momentum=None)
        self.conv1, self.conv2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.Conv2d(12, 12, 1, bias=False)
        self.short, self.norm3 = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12, affine=False)
        self.pool, self.act = nn.MaxPool2d(3, stride=2, padding=1), nn.ReLU(inplace=True)
        self.last, self.norm4 = nn.Conv2d(24, 16, 3, stride=2, groups=2), nn.BatchNorm2d(16, track_running_stats=False)
        self.scale, self.shift = nn.Parameter(torch.rand(1, 16, 1, 1)), nn.Parameter(torch.rand(16, 1, 1))
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm1(self.stem(x))))
        y = self.norm2(self.conv1(x))
        y += self.norm3(self.short(x))
        y = self.act(y)
        z = torch.sigmoid(self.conv2(y)) + x
        x = torch.cat([y, z], 1)
        x = (self.norm4(self.last(x)) + self.shift) * self.scale
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Smooth(nn.Module):
    """BatchNorm without ReLU: nothing that rounding could turn over."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for C, K, stride in ((3, 16, 1), (16, 24, 2), (24, 24, 1)):
            layers += [nn.Conv2d(C, K, 3, stride, 1, bias=False), nn.BatchNorm2d(K), nn.GELU()]
        self.body, self.fc = nn.Sequential(*layers), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "smooth": (Smooth, 9),
    "block": (Block, 14),
    "residual": (lambda: residual(CLASSES), 16),
}


def pruned(model: nn.Module, live: float = 0.4, *, whole: bool = True) -> dict[nn.Parameter, Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks: dict[nn.Parameter, Tensor] = {}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight: Any = module.weight
            shape = (*weight.shape[:2], 1, 1) if whole else weight.shape
            mask = (torch.rand(shape, generator=generator) < live).expand(weight.shape).clone()
            with torch.no_grad():
                weight.mul_(mask)
            masks[weight] = mask
    return masks


def step(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Logits, then the gradients of the images and of all parameters."""
    images = images.clone().requires_grad_()
    logits = model(images)
    cross_entropy(logits, labels, label_smoothing=0.1).backward()
    gradients = [p.grad for p in model.parameters()]
    assert images.grad is not None
    return [logits.detach(), images.grad, *(g for g in gradients if g is not None)]


def check(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    largest = max(float(value.abs().max()) for value in expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        # What is zero but for rounding, such as a bias before BatchNorm, is as large as rounding.
        assert float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 0.1 * largest)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("images", [16, 5])
def test_a_step_is_that_of_the_dense_network(name: str, images: int) -> None:
    make, side = NETWORKS[name]
    torch.manual_seed(1)
    model = make().train()
    masks = pruned(model, whole=images == 16)
    dense = copy.deepcopy(model)
    module = SparseTraining(model)
    module.engage(masks, images)
    x, labels = torch.randn(images, 3, side, side), torch.randint(0, CLASSES, (images,))
    found, expected = step(module, x, labels), step(dense, x, labels)
    for position, (parameter, twin) in enumerate(zip(model.parameters(), dense.parameters(), strict=True)):
        assert parameter.grad is not None and twin.grad is not None
        if parameter in masks:
            assert not parameter.grad[~masks[parameter]].count_nonzero()
            expected[2 + position] = expected[2 + position] * masks[parameter]
    check(found, expected, 1e-5 if name == "smooth" else 1e-4)  # ReLU turns rounding over here and there
    for (key, buffer), other in zip(model.named_buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-5, atol=1e-5, msg=key)


def test_smaller_batches_have_room_and_tiny_ones_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Smooth().train()
    masks = pruned(model)
    dense = copy.deepcopy(model)
    module = SparseTraining(model)
    module.engage(masks, 32)
    for images in (32, 19, 4):
        x, labels = torch.randn(images, 3, 9, 9), torch.randint(0, CLASSES, (images,))
        for network in (module, dense):
            network.zero_grad()
        found, expected = step(module, x, labels), step(dense, x, labels)
        for position, parameter in enumerate(model.parameters()):
            if parameter in masks:
                mask = masks[parameter]
                found[2 + position], expected[2 + position] = found[2 + position] * mask, expected[2 + position] * mask
        check(found, expected)
    assert len(module._layers) == 1, "one plan, for 32 images"


def test_eval_mode_without_gradients_and_frozen_parameters() -> None:
    model = Block().train()
    masks = pruned(model)
    module = SparseTraining(model)
    module.engage(masks, 8)
    x, labels = torch.randn(8, 3, 14, 14), torch.randint(0, CLASSES, (8,))
    module(x)  # statistics that are not those of the start
    model.eval()
    dense = copy.deepcopy(model)
    before = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        check([module(x)], [dense(x)])
    for network in (model, dense):
        network.requires_grad_(False)
        network.fc.requires_grad_(True)
    check(step(module, x, labels), step(dense, x, labels), 1e-4)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    assert model.stem.weight.grad is None and model.fc.weight.grad is not None


def test_new_masks_and_changed_weights_are_seen() -> None:
    model = Smooth().train()
    module = SparseTraining(model)
    x, labels = torch.randn(16, 3, 9, 9), torch.randint(0, CLASSES, (16,))
    for live in (0.8, 0.5):
        masks = pruned(model, live)
        module.engage(masks, 16)
        with torch.no_grad():
            for weight, mask in masks.items():
                weight.add_(0.1 * torch.randn(weight.shape) * mask)
        dense = copy.deepcopy(model)
        for network in (module, dense):
            network.zero_grad()
        found, expected = step(module, x, labels), step(dense, x, labels)
        for position, parameter in enumerate(model.parameters()):
            expected[2 + position] = expected[2 + position] * masks.get(parameter, torch.tensor(True))
        check(found, expected, 1e-4)  # BatchNorm divides by what few weights leave of the deviation


def test_disengaged_it_is_the_model_itself() -> None:
    model = Smooth().train()
    module = SparseTraining(model)
    x = torch.randn(4, 3, 9, 9)
    assert torch.equal(module(x), copy.deepcopy(model)(x))
    assert dict(module.model.named_parameters()).keys() == dict(model.named_parameters()).keys()


def test_ways_are_kept_and_give_the_same_bits() -> None:
    model = Smooth().train()
    masks, twin = pruned(model), copy.deepcopy(model)
    x, labels = torch.randn(16, 3, 9, 9), torch.randint(0, CLASSES, (16,))
    module = SparseTraining(model)
    module.engage(masks, 16)
    module.choose((3, 9, 9))
    other = SparseTraining(twin)
    other.take_ways(module.ways())
    other.engage({q: masks[p] for p, q in zip(model.parameters(), twin.parameters(), strict=True) if p in masks}, 16)
    found, expected = step(other, x, labels), step(module, x, labels)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert other.ways() == module.ways()


def test_a_step_cannot_go_backward_twice() -> None:
    model = Smooth().train()
    module = SparseTraining(model)
    module.engage(pruned(model), 4)
    loss = module(torch.randn(4, 3, 9, 9)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="goes backward once"):
        loss.backward()


class Forward(nn.Module):
    """A stem and a convolution, put together by a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], size: int = 9) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.narrow, self.even = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 8, (3, 1), padding="same")
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.nothing = nn.Sequential(nn.Identity(), nn.Sequential())
        self.drop, self.place = nn.Dropout(0.3), nn.Parameter(torch.rand(1, 8, size, size))
        self.fc, self.calls, self.how = nn.Linear(8, CLASSES), 0, forward
        self.register_buffer("mean", torch.zeros(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.how(self, self.stem(x))
        return self.fc((x * x.sin()).mean((2, 3)))


def both_sides(net: Any, x: Tensor) -> Tensor:
    left, right = net.conv(torch.cat([x, x.flip(3)])).chunk(2)
    return left + 2 * right


def by_halves(net: Any, x: Tensor) -> Tensor:
    halves = x.chunk(2, 1)
    return torch.cat([net.narrow(halves[0]), halves[1]], 1)


ODD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a sum with one map for all images": lambda net, x: net.norm(x) + net.place,
    "BatchNorm of one map for all images": lambda net, x: net.norm(x.mean(0, keepdim=True)) + x,
    "BatchNorm of single pixels": lambda net, x: net.norm(x.mean((2, 3), keepdim=True)) * x,
    "twice the images": both_sides,
    "several tensors": by_halves,
    "padding by name and by reflection": lambda net, x: net.reflect(net.even(x)),
    "slices and padding": lambda net, x: net.norm(F.pad(x[:, 2:6, ::2, 1:], (1, 0, -1, 2, 1, 3), value=0.5)) * 2,
    "slices of images": lambda net, x: net.norm(torch.cat([x[9:, 0:4], x[:9, 4:]]).repeat(1, 2, 1, 1)),
    "padding in other ways": lambda net, x: net.norm(F.pad(x[..., 1:4], (1, 2, 0, 1), mode="reflect")),
    "modules that do nothing": lambda net, x: net.nothing(net.norm(net.nothing(x)) + net.nothing(x)),
    "random numbers": lambda net, x: net.conv(net.drop(x)),
    "a module called twice": lambda net, x: net.norm(net.conv(net.norm(net.conv(x)))),
}


def test_modules_that_do_nothing_take_no_map_from_the_loops() -> None:
    reading = read(Forward(lambda net, x: net.norm(net.conv(net.nothing(x)) + net.nothing(net.conv(x)))))
    assert not [
        node for o in reading.operations if isinstance(o, Segment) for node in o.nodes if "nothing" in node.name
    ]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_odd_networks_have_the_gradients_of_dense_ones(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    model = Forward(ODD[name]).train().to(memory_format=layout)
    if name == "BatchNorm of single pixels":
        model.norm = nn.BatchNorm2d(8, track_running_stats=False)
    masks = pruned(model, 0.6)
    dense = copy.deepcopy(model)
    module = SparseTraining(model)
    module.engage(masks, 18)
    x, labels = torch.rand(18, 3, 9, 9).to(memory_format=layout), torch.randint(0, CLASSES, (18,))
    found, expected = [], []
    for network, values in ((module, found), (dense, expected)):
        torch.manual_seed(2)
        values += step(network, x, labels)
    used = [p for p in model.parameters() if p.grad is not None]
    for position, parameter in enumerate(used):
        mask = masks.get(parameter, torch.tensor(True)).expand_as(parameter)
        assert not found[2 + position][~mask].count_nonzero()
        expected[2 + position] = expected[2 + position] * mask
    check(found, expected, 1e-4 if name == "BatchNorm of single pixels" else 1e-5)  # which is of 18 values
    for buffer, other in zip(model.buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-5, atol=1e-6)


def counted(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.conv(x)


def frozen(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.norm(x)
    return net.conv(x)


def averaged(net: Any, x: Tensor) -> Tensor:
    if net.training:
        net.mean.add_(x.detach().mean((0, 2, 3), keepdim=True))
    return net.conv(x - net.mean)


LOST: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "drawn by torch": (lambda net, x: net.conv(x * torch.rand(1) if net.training else x), "random numbers in Python"),
    "drawn by Python": (lambda net, x: net.conv(x if random.random() < 0.5 else 2 * x), "random numbers in Python"),
    "a counter": (counted, "changes its calls in every pass"),
    "statistics of its own": (averaged, "changes its own tensors in every pass"),
    "without gradients": (frozen, "stem.weight would get another gradient, as where .* torch.no_grad"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_a_trace_would_lose_is_refused(name: str) -> None:
    how, why = LOST[name]
    model, drawn = Forward(how).train(), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StarfireError, match=why):
        SparseTraining(model).engage({}, 4)
    assert torch.equal(torch.get_rng_state(), drawn) and not model.calls
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_networks_that_cannot_be_read_say_why() -> None:
    hooked, before = Smooth(), Smooth()
    hooked.body.register_forward_hook(lambda *_: None)
    before.body.register_full_backward_pre_hook(lambda *_: None)
    refused = (
        (branching(CLASSES), "cannot trace"),
        (hooked, "hooks"),
        (before, "hooks"),
        (Smooth().double(), "float32"),
    )
    for model, why in refused:
        with pytest.raises(StarfireError, match=why):
            SparseTraining(model).engage({}, 4)


def test_channels_without_live_kernels_are_exactly_what_their_bias_says() -> None:
    """A sum that is off in its last digit is noise once BatchNorm has divided by nothing."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(1)).train()
    masks = pruned(model, 0.0)
    with torch.no_grad():
        model[0].bias.uniform_(0.3, 9)
        model[1].bias.fill_(0.25)
    module = SparseTraining(model)
    module.engage(masks, 37)
    assert torch.equal(module(torch.rand(37, 3, 9, 9)), torch.full((37, 8 * 49), 0.25))
