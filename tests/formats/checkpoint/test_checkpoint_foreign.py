"""Checkpoints written by other people's code are read, and read right."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize, prune

from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.meta import Meta


def net() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)))


def same(found: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(state) and all(torch.equal(found[k], state[k]) for k in state)


WRAPPED = {
    "bare": lambda s: s,
    "akamaster": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "best_prec1": 92.6},
    "tutorial": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {"state": {}}, "loss": 0.3},
    "torchvision": lambda s: {"model": s, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}, "epoch": 9},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "compiled under ddp": lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "ddp under compile": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "compiled inside": lambda s: {k.replace("conv.", "conv._orig_mod."): v for k, v in s.items()},
    "swa": lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
    "twice wrapped": lambda s: {"model": {"state_dict": s}},
    "beside tensors": lambda s: {"class_weights": torch.ones(4), "rng": torch.get_rng_state(), "state_dict": s},
    "own name": lambda s: {"the_student": s, "note": "x"},
    "with an average": lambda s: {"state_dict_ema": {k: v + 1 for k, v in s.items()}, "state_dict": s},
    "with extra state": lambda s: {**s, "_extra_state": {"a": 1}},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_and_wrappers(tmp_path: Path, wrapping: str, zipped: bool) -> None:
    state = net().state_dict()
    torch.save(WRAPPED[wrapping](dict(state)), tmp_path / "a.th", _use_new_zipfile_serialization=zipped)
    found = load(tmp_path / "a.th")
    assert same(found.state, state)
    assert found.format == ("torch" if zipped else "torch-legacy")
    assert found.masks is None and found.meta == Meta() and found.training is None


def test_options_that_were_pickled_along_are_passed_over(tmp_path: Path) -> None:
    """Scripts (timm's too) put an argparse.Namespace, numpy scalars and paths beside the weights."""
    state = net().state_dict()
    content = {
        "state_dict": state,
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "best": np.float64(0.7),
        "history": np.arange(3),
        "curves": defaultdict(list, {"loss": [1.0]}),
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        assert same(load(tmp_path / "a.pt").state, state)


def test_a_whole_model_whose_code_is_lost(tmp_path: Path) -> None:
    module = types.ModuleType("lost_training_script")
    exec(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 3, bias=False)\n"
        "        self.register_buffer('grid', self.conv.weight.detach()[0].clone(), persistent=False)\n"
        "        self.blocks = nn.Sequential(nn.BatchNorm2d(4), nn.Linear(4, 2))\n",
        module.__dict__,
    )
    sys.modules[module.__name__] = module
    try:
        model = module.Net()
        torch.save(model, tmp_path / "a.pt")
        torch.save({"model": nn.DataParallel(model), "epoch": 3}, tmp_path / "b.pt")
        state = model.state_dict()
    finally:
        del sys.modules[module.__name__]
    with pytest.raises(ImportError):
        importlib.import_module("lost_training_script")
    assert same(load(tmp_path / "a.pt").state, state)
    assert same(load(tmp_path / "b.pt").state, state)
    assert any("whole pickled model" in note for note in load(tmp_path / "a.pt").notes)


def test_a_whole_model_module_by_module(tmp_path: Path) -> None:
    """As `torch_pruning.state_dict` 1.6 gives it: each module's attributes under its name."""
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), block=net()))
    parts = {
        name: {
            "_parameters": dict(module._parameters),
            "_buffers": dict(module._buffers),
            "_non_persistent_buffers_set": set(),
            "_modules": dict.fromkeys(module._modules),
        }
        for name, module in model.named_modules()
    }
    torch.save({"full_state_dict": parts, "attributions": {}}, tmp_path / "a.pth")
    assert same(load(tmp_path / "a.pth").state, model.state_dict())


def test_nnis_stale_copy_is_passed_over(tmp_path: Path) -> None:
    w, m = torch.randn(4, 3), (torch.rand(4, 3) > 0.5).float()
    wrapper = {"fc._nni_wrapper.weight": w, "fc._nni_wrapper.weight_mask": m, "fc._nni_wrapper.bias": torch.ones(4)}
    torch.save({"fc.weight": torch.zeros(4, 3), "fc.bias": torch.zeros(4), **wrapper}, tmp_path / "a.pth")
    found = load(tmp_path / "a.pth")
    assert list(found.state) == ["fc.weight", "fc.bias"]
    assert torch.equal(found.state["fc.weight"], w * m) and torch.equal(found.state["fc.bias"], torch.ones(4))


def test_torch_prune(tmp_path: Path) -> None:
    model = net()
    prune.l1_unstructured(model.conv, "weight", amount=0.4)
    prune.random_unstructured(model.conv, "bias", amount=1)
    prune.ln_structured(model.fc, "weight", amount=0.5, n=2, dim=0)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.pt")
    found = load(tmp_path / "a.pt")
    for module, name in ((model.conv, "weight"), (model.conv, "bias"), (model.fc, "weight")):
        prune.remove(module, name)
    assert found.state.keys() == model.state_dict().keys()
    assert all(torch.equal(found.state[k], v) for k, v in model.state_dict().items())
    assert found.masks is not None and found.masks.keys() == {"conv.weight", "fc.weight"}
    assert int((~found.masks["conv.weight"]).sum()) == round(0.4 * 108)
    assert torch.equal(found.masks["fc.weight"], model.fc.weight != 0)


@pytest.mark.parametrize(
    ("weight", "mask"),
    [
        ("conv.weight", "conv.weight_mask"),
        ("conv.weight", "conv.mask"),
        ("conv.parametrizations.weight.original", "conv.parametrizations.weight.0.mask"),
        ("conv._nni_wrapper.weight", "conv._nni_wrapper.weight_mask"),  # NNI 3.0
        ("conv.weight", "__nncf_hooks.post_hooks.conv:weight__0.0.binary_mask"),  # NNCF 3.4
    ],
)
def test_masks_beside_weights(tmp_path: Path, weight: str, mask: str) -> None:
    w, m = torch.randn(4, 3, 3, 3), (torch.rand(4, 3, 3, 3) > 0.5).float()
    torch.save({weight: w, mask: m, "bn.weight": torch.ones(4)}, tmp_path / "a.pt")
    found = load(tmp_path / "a.pt")
    assert list(found.state) == ["conv.weight", "bn.weight"]
    assert torch.equal(found.state["conv.weight"], w * m)
    assert found.masks is not None and torch.equal(found.masks["conv.weight"], m.bool())
    assert f"({int((m == 0).sum())} weights under them were not zero)" in found.notes[-1]


def test_what_only_looks_like_a_mask_is_a_weight(tmp_path: Path) -> None:
    state = {
        "a.weight": torch.randn(3, 4),
        "a.weight_mask": torch.randn(3, 4),  # scores, not zeros and ones
        "b.weight": torch.randn(3, 4),
        "b.mask": torch.ones(4),  # another shape
        "c_mask": torch.ones(2, 2),
    }
    torch.save(state, tmp_path / "a.pt")
    found = load(tmp_path / "a.pt")
    assert same(found.state, state) and found.masks is None


class Masked(nn.Module):
    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def test_a_mask_as_parametrization(tmp_path: Path) -> None:
    model = net()
    parametrize.register_parametrization(model.fc, "weight", Masked((torch.rand(2, 4) > 0.5).float()))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    found = load(tmp_path / "a.pt")
    assert torch.equal(found.state["fc.weight"], model.fc.weight)
    assert found.masks is not None and torch.equal(found.masks["fc.weight"], model.fc.weight != 0)


def test_safetensors(tmp_path: Path) -> None:
    state = {f"layer{n}.weight": torch.randn(2, 3) for n in range(12)} | {"half": torch.ones(3, dtype=torch.bfloat16)}
    save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = load(tmp_path / "a.safetensors")
    assert found.format == "safetensors"
    assert list(found.state) == ["half", *(f"layer{n}.weight" for n in range(12))]
    assert all(torch.equal(found.state[k], v) for k, v in state.items())


def shard(folder: Path, state: dict[str, torch.Tensor], suffix: str) -> Path:
    names = [f"model-0000{n + 1}-of-00002.{suffix}" for n in range(2)]
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for n, (key, tensor) in enumerate(state.items()):
        parts[n % 2][key] = tensor
    for name, part in zip(names, parts, strict=True):
        (save_file if suffix == "safetensors" else torch.save)(part, folder / name)
    index = folder / f"model.{suffix}.index.json"
    weight_map = {key: names[n % 2] for n, key in enumerate(state)}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(tmp_path: Path, suffix: str) -> None:
    state = {f"layer{n}.weight": torch.randn(2, 3) for n in range(12)}
    index = shard(tmp_path, state, suffix)
    found = load(index)
    assert found.format == "sharded" and same(found.state, state)
    (tmp_path / f"model-00002-of-00002.{suffix}").unlink()
    with pytest.raises(StarfireError, match=r"00002-of-00002.*not beside it"):
        load(index)


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"w": "../up.safetensors"}, "beside their index"),
        ({"w": "/etc/passwd"}, "beside their index"),
        ({"w": 3}, "beside their index"),
        ({"other": "model-00001-of-00002.safetensors"}, "does not hold it"),
        ({"w": "model.safetensors.index.json"}, "is a sharded file"),
        ({}, "weight_map"),
        ([1], "weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, weight_map: object, says: str) -> None:
    index = shard(tmp_path, {"w": torch.ones(2), "v": torch.ones(2)}, "safetensors")
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(StarfireError, match=says):
        load(index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8])
def test_dtypes_stay(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"w": (torch.randn(4, 4) * 10).to(dtype), "empty": torch.zeros(0, 3, dtype=dtype)}
    torch.save(state, tmp_path / "a.pt")
    found = load(tmp_path / "a.pt").state
    assert found["w"].dtype == dtype and torch.equal(found["w"].float(), state["w"].float())
    assert found["empty"].shape == (0, 3)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_sparse_and_quantised_tensors_become_dense(tmp_path: Path) -> None:
    w = torch.randn(4, 4) * (torch.rand(4, 4) > 0.5)
    for sparse in (w.to_sparse(), w.to_sparse_csr()):
        torch.save({"w": sparse}, tmp_path / "a.pt")
        assert torch.equal(load(tmp_path / "a.pt").state["w"], w)
    torch.save({"w": torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)}, tmp_path / "a.pt")
    assert bool(((load(tmp_path / "a.pt").state["w"] - w).abs() < 0.06).all())
