"""Whole-network rivals: which engine is taken, what it computes, and where it cannot be had."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import starfire_cli
from starfire_cli.sparse import NetworkEngine, Rivals, SparseNetwork, rivals
from starfire_cli.sparse.rivals import dense_network, fastest, worth_exporting, worth_timing

pytest.importorskip("llvmlite")
HAS_ONNX = all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))


class Residual(nn.Module):
    """Every kind of layer that is folded: grouped, strided, with and without bias, BatchNorm, addition and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.bn_b = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.c, self.fc = nn.Conv2d(8, 12, (1, 3), stride=2, padding=(0, 2), dilation=(1, 2)), nn.Linear(12, 5)
        self.pool = nn.MaxPool2d(2)

    def forward(self, pixels: Tensor) -> Tensor:
        first = torch.relu(self.bn_a(self.a(pixels)))
        both = nn.functional.relu6(self.bn_b(self.b(first)) + first)
        logits: Tensor = self.fc(self.pool(torch.relu(self.c(both))).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    made = Residual()
    for norm in (made.bn_a, made.bn_b):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.running_mean, 0, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return made.eval()


def taking(monkeypatch: pytest.MonkeyPatch, times: Mapping[str, float]) -> list[list[str]]:
    """Engines take these times, whatever the clock says; returns the names of those that were timed together."""
    timed: list[list[str]] = []

    def in_turns(runs: Mapping[str, Callable[[Tensor], object]], pixels: Tensor) -> dict[str, float]:
        timed.append(list(runs))
        return {name: times[name] for name in runs}

    monkeypatch.setattr(rivals, "_in_turns", in_turns)
    return timed


@torch.no_grad()
def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"starfire": 1.0}, "starfire"),
        ({"starfire": 1.0, "torch": 0.96}, "starfire"),  # noise
        ({"starfire": 1.0, "torch": 0.94, "onnxruntime": 0.93}, "onnxruntime"),
        ({"starfire": 1.0, "torch": 0.5, "torch-channels-last": 0.4, "onnxruntime": 2.0}, "torch-channels-last"),
    ],
)
def test_a_rival_is_taken_where_it_is_faster_by_more_than_noise(seconds: dict[str, float], expected: str) -> None:
    assert fastest(seconds) == expected


def test_dense_engines_are_made_only_where_they_may_be_faster() -> None:
    assert not worth_timing(0.0155, 0.0543)  # ResNet50 at ck 0.8
    assert worth_timing(0.0216, 0.0575) and worth_exporting(0.0216, 0.045)  # at ck 0.6
    assert worth_timing(0.00057, 0.0023) and worth_exporting(0.00057, 0.00123)  # ResNet-20 at ck 0.5
    assert worth_timing(0.0051, 0.0188) and not worth_timing(0.00025, 0.0023)  # MobileNetV2, ResNet-20 at ck 0.8
    assert worth_timing(0.0, 0.0) is False and worth_timing(1.0, 0.0)  # nothing was measured by layer
    assert not worth_exporting(0.03, 0.1)


@pytest.mark.parametrize("name", ["torch", "torch-channels-last"])
@pytest.mark.parametrize("images", [1, 3])
def test_torch_runs_it_as_a_whole(net: nn.Module, monkeypatch: pytest.MonkeyPatch, name: str, images: int) -> None:
    timed = taking(monkeypatch, {"starfire": 1.0, "torch": 0.8, "torch-channels-last": 0.8} | {name: 0.5})
    sparse, pixels = SparseNetwork(net, rivals=Rivals()), torch.randn(images, 3, 10, 12)
    same(sparse(pixels), net(pixels))
    assert timed == [["starfire"], ["starfire", "torch", "torch-channels-last"]]
    shape = (images, 3, 10, 12)
    assert sparse.engine(shape) == NetworkEngine(
        name=name, seconds={"starfire": 1.0, "torch": 0.8, "torch-channels-last": 0.8} | {name: 0.5}, images=images
    )
    hows = {choice.name: choice.how for choice in sparse.choices(shape)}
    assert {hows.pop(layer) for layer in ("a", "b", "c", "fc")} == {"dense"} and set(hows.values()) == {"torch"}
    assert f"x10x12, {torch.get_num_threads()} threads: {name} (" in repr(sparse)
    many = torch.randn(40, 3, 10, 12)
    same(sparse(many), net(many))
    assert sparse(many[:0]).shape == (0, 5)


def test_loops_run_it_where_no_rival_is_asked_or_faster(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = taking(monkeypatch, {"starfire": 1.0, "torch": 1.0, "torch-channels-last": 0.96})
    alone = SparseNetwork(net)
    assert alone.engine((2, 3, 8, 8)) == NetworkEngine(name="starfire", seconds={}, images=2) and not timed
    assert SparseNetwork(net, rivals=Rivals()).engine((2, 3, 8, 8)).name == "starfire"
    monkeypatch.setattr(rivals, "worth_timing", lambda own, layers: False)
    assert SparseNetwork(net, rivals=Rivals()).engine((2, 3, 8, 8)).seconds == {"starfire": 1.0}


def test_an_engine_that_computes_something_else_or_raises_is_not_taken(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    taking(monkeypatch, {"starfire": 1.0, "torch": 1.0, "torch-channels-last": 1.0, "onnxruntime": 0.1})
    pixels = torch.randn(2, 3, 8, 8)

    def opener(change: Callable[[Tensor], Tensor]) -> Rivals:
        def opened(build: Callable[[], nn.Module], images: Tensor, threads: int) -> Callable[[Tensor], Tensor]:
            assert threads == torch.get_num_threads() and images.shape == pixels.shape
            dense = build()
            return lambda given: change(dense(given))

        return Rivals(onnxruntime=opened)

    def raising(logits: Tensor) -> Tensor:
        raise RuntimeError("nothing here")

    for change in (lambda x: x + 0.01, lambda x: x[:1], lambda x: x * float("nan"), raising):
        sparse = SparseNetwork(net, rivals=opener(change))
        same(sparse(pixels), net(pixels))
        assert sparse.engine((2, 3, 8, 8)).name == "starfire"
    sparse = SparseNetwork(net, rivals=opener(lambda x: x))  # but one that computes the same is
    same(sparse(pixels), net(pixels))
    assert {choice.how for choice in sparse.choices((2, 3, 8, 8))} == {"onnxruntime"}


def test_the_dense_network_is_put_together_again(net: nn.Module) -> None:
    pixels = torch.randn(2, 3, 9, 7)
    network = SparseNetwork(net)._network
    built = dense_network(network)
    same(built(pixels), net(pixels))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in built.modules())
    assert sum(p.numel() for p in network.root.parameters()) == 0  # it stays without dense weights


def test_without_onnx_runtime_it_is_not_exported(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    taking(monkeypatch, {"starfire": 1.0, "torch": 0.9, "torch-channels-last": 0.8})
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else real(name, *a))
    sparse = starfire_cli.sparsify(net)
    same(sparse(torch.ones(1, 3, 8, 8)), net(torch.ones(1, 3, 8, 8)))
    assert sparse.engine((1, 3, 8, 8)).name == "torch-channels-last"


@pytest.mark.skipif(not HAS_ONNX, reason="ONNX Runtime is not installed")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_onnx_runtime_runs_it_as_a_whole_but_for_forks(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    taking(monkeypatch, {"starfire": 1.0, "torch": 0.9, "torch-channels-last": 0.8, "onnxruntime": 0.5})
    sparse = starfire_cli.sparsify(net)
    shape = (3, 3, 8, 12)
    for images in (3, 1, 300, 2):
        pixels = torch.randn(images, *shape[1:], requires_grad=True)
        same(sparse(pixels), net(pixels))
        monkeypatch.setattr(rivals, "worth_exporting", lambda *_: False)  # one image has a plan of its own
    assert sparse(torch.empty(0, *shape[1:])).shape == (0, 5)
    assert sparse.engine(shape).name == "onnxruntime" and sparse.engine((1, *shape[1:])).name == "torch-channels-last"
    assert {choice.how for choice in sparse.choices(shape)} == {"onnxruntime"}
    if not hasattr(os, "fork"):
        return
    pixels = torch.randn(shape)
    expected = net(pixels).detach()
    child = os.fork()
    if child == 0:
        right = torch.allclose(sparse(pixels), expected, rtol=1e-4, atol=1e-5)
        os._exit(0 if right and sparse.engine(shape).name == "starfire" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sparse.engine(shape).name == "onnxruntime"
