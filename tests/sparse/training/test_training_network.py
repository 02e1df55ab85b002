"""Networks whose steps go over live weights: the same results, gradients and statistics as dense ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starfire_cli.errors import StarfireError
from starfire_cli.sparse.training import SparseTraining
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


def test_networks_that_cannot_be_read_say_why() -> None:
    hooked = Smooth()
    hooked.body.register_forward_hook(lambda *_: None)
    for model, why in ((branching(CLASSES), "cannot trace"), (hooked, "hooks"), (Smooth().double(), "float32")):
        with pytest.raises(StarfireError, match=why):
            SparseTraining(model).engage({}, 4)
