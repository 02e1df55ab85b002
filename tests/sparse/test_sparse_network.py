"""Sparse execution of whole networks: the same answers as dense, in any number of threads, from any way in."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import starfire_cli
from starfire_cli import sparse as sparse_package
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint import file as checkpoint
from starfire_cli.models import build_model
from starfire_cli.sparse import SparseNetwork, compiler
from starfire_cli.sparse.choosing import SPINNING
from starfire_cli.sparse.tracing import TracedNetwork

pytest.importorskip("llvmlite")


def pruned(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """`share` of the kernels of each input channel and of a linear layer's weights gone, BatchNorm as if trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                module.weight *= torch.rand(*module.weight.shape[:2], 1, 1, generator=generator) >= share
            elif isinstance(module, nn.Linear):
                module.weight *= torch.rand(module.weight.shape, generator=generator) >= share
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
    return model.eval()


@torch.no_grad()
def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return pruned(torchvision.models.resnet18(num_classes=10), 0.8)


@pytest.fixture(scope="module")
def sparse(dense: nn.Module) -> SparseNetwork:
    return starfire_cli.sparsify(dense, rivals=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), 64),
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=10), 65),
    "shufflenet_v2": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), 64),
}
LARGE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet50": (torchvision.models.resnet50, 224),
    "resnext50": (torchvision.models.resnext50_32x4d, 96),
    "vgg16_bn": (torchvision.models.vgg16_bn, 64),
    "densenet121": (torchvision.models.densenet121, 64),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 96),
    "convnext_tiny": (torchvision.models.convnext_tiny, 64),
    "regnet_y_400mf": (torchvision.models.regnet_y_400mf, 96),
}


def agrees(model: nn.Module, side: int, batches: tuple[int, ...]) -> None:
    model = pruned(model, 0.8)
    made = starfire_cli.sparsify(model, rivals=False)
    for batch in batches:
        images = torch.rand(batch, 3, side, side)
        with torch.no_grad():
            assert difference(made(images), model(images)) < 1e-4, batch


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision_give_the_same(name: str) -> None:
    build, side = NETWORKS[name]
    agrees(build(), side, (2,))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_networks_of_torchvision_give_the_same(name: str) -> None:
    build, side = LARGE[name]
    agrees(build(), side, (1, 3))


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (5, 3, 64, 64), (2, 3, 47, 70)])
def test_any_batch_and_any_size(dense: nn.Module, sparse: SparseNetwork, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    with torch.no_grad():
        assert difference(sparse(images), dense(images)) < 1e-4
        assert difference(sparse(images.to(memory_format=torch.channels_last)), dense(images)) < 1e-4
    assert sparse(images[:0]).shape == (0, 10)


def test_threads_may_call_it_at_a_time_and_get_the_same_each_time(sparse: SparseNetwork) -> None:
    images = [torch.rand(batch, 3, 64, 64) for batch in (1, 5, 1, 5)]
    expected = [sparse(i) for i in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            for found, want in zip(pool.map(sparse, images), expected, strict=True):
                assert torch.equal(found, want)


def test_two_threads_on_one_image_give_what_one_gives(dense: nn.Module) -> None:
    images = torch.rand(1, 3, 64, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = starfire_cli.sparsify(dense, rivals=False)
        found = [many(images) for _ in range(20)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(f, found[0]) for f in found)
    with torch.no_grad():
        assert difference(found[0], dense(images)) < 1e-4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_it_works_after_a_fork(sparse: SparseNetwork) -> None:
    images = torch.rand(1, 3, 64, 64)
    expected = sparse(images)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(sparse(images), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_dense_weight_is_kept_where_a_loop_runs(dense: nn.Module) -> None:
    made = starfire_cli.sparsify(dense, rivals=False)
    held = sum(live.alive.nbytes + live.values.nbytes for live in (f.live for f in made._network.folded.values()))
    weights = sum(p.numel() for p in dense.parameters() if p.ndim > 1)
    assert held < 4 * weights * 0.25  # a fifth of the values, and a bit for each weight
    assert sum(p.numel() for p in made._network.root.parameters()) == 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_what_networks_do_in_place_is_no_reason_to_leave_them_to_torch(name: str) -> None:
    assert TracedNetwork(getattr(torchvision.models, name)(num_classes=10).eval()).in_loops


def test_masks_count_as_zeros(dense: nn.Module) -> None:
    masks = {n: torch.rand(p.shape) < 0.5 for n, p in dense.named_parameters() if p.ndim == 4}
    before = {n: p.clone() for n, p in dense.named_parameters()}
    made = starfire_cli.sparsify(dense, masks, rivals=False)
    assert all(torch.equal(p, before[n]) for n, p in dense.named_parameters())
    with torch.no_grad():
        for n, p in dense.named_parameters():
            if n in masks:
                p.mul_(masks[n])
        images = torch.rand(2, 3, 64, 64)
        assert difference(made(images), dense(images)) < 1e-4
        for n, p in dense.named_parameters():
            p.copy_(before[n])
    with pytest.raises(StarfireError, match=r"mask 'conv9' \(2,\) does not fit: the model has no such parameter"):
        starfire_cli.sparsify(dense, {"conv9": torch.ones(2, dtype=torch.bool)})


def test_each_layer_has_a_choice_and_what_was_measured(sparse: SparseNetwork) -> None:
    starfire_cli.warmup(sparse, (1, 3, 64, 64))
    chosen = {c.name: c for c in sparse.choices((1, 3, 64, 64)) if c.seconds}
    assert {"conv1", "layer4.1.conv2", "layer2.0.downsample.0", "fc"} <= set(chosen)
    for choice in chosen.values():
        least = min(choice.seconds.values())
        assert choice.seconds[choice.how] <= least * (SPINNING if choice.name == "fc" else 1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = build_model("resnet20", num_classes=10, image_size=32)
    pruned(net, 0.7)
    data = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    meta = {"model": {"spec": "resnet20", "num_classes": 10, "image_size": 32}, "data": data}
    file = tmp_path / "best.pt"
    checkpoint.save(file, state=net.state_dict(), masks={}, meta=meta)
    return file


def test_a_checkpoint_loads_sparse_with_its_normalisation(saved: Path) -> None:
    images = torch.rand(3, 3, 32, 32)
    dense = starfire_cli.load_model(saved)
    sparse = starfire_cli.load_model(saved, sparse=True, rivals=False)
    with torch.no_grad():
        assert difference(sparse(images), dense(images)) < 1e-4
    in_torch = {choice.name for choice in sparse.choices((3, 3, 32, 32)) if choice.how == "torch"}
    assert in_torch == {"flatten"}  # normalisation, shortcuts, additions and pooling are done by loops


def test_without_llvmlite_it_says_what_to_install_and_runs_dense(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = 'llvmlite is not installed (pip install "starfire-cli[fast]" brings it)'
    monkeypatch.setattr(sparse_package, "missing", lambda: reason)
    with pytest.warns(UserWarning, match=r"sparse=True runs dense: llvmlite is not installed \(pip install"):
        assert not isinstance(starfire_cli.load_model(saved, sparse=True), SparseNetwork)
    monkeypatch.setattr(compiler, "missing", lambda: reason)
    with pytest.raises(StarfireError, match="llvmlite is not installed"):
        starfire_cli.sparsify(nn.Conv2d(3, 3, 1))


def test_what_cannot_be_done_is_said(sparse: SparseNetwork, saved: Path) -> None:
    with pytest.raises(StarfireError, match=r"float32 images \(N, C, H, W\) on the CPU, not torch.float64 \(2, 3\)"):
        sparse(torch.rand(2, 3, dtype=torch.float64))
    with pytest.raises(StarfireError, match="only predicts"):
        sparse.train()
    with pytest.raises(StarfireError, match="device='meta' cannot be used here"):
        starfire_cli.load_model(saved, sparse=True, device="meta")

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(StarfireError, match=r"torch\.fx cannot trace the model"):
        starfire_cli.sparsify(Branches())
