"""Packed checkpoints come back bit for bit, from files that any safetensors reader opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open
from torch import Tensor

import starfire_cli
from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.formats.checkpoint import file as checkpoint
from starfire_cli.formats.packed import read as packed
from starfire_cli.formats.packed.write import pack
from tests.helpers.packed_strategies import FLOATS, checkpoints, same_bits, unstructured, weights, windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


def small(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    rng = np.random.default_rng(seed)
    masks = {"conv.weight": windows((16, 8, 3, 3), rng), "fc.weight": unstructured((20, 64), rng)}
    state = {"conv.weight": weights(torch.float32, (16, 8, 3, 3), rng) * masks["conv.weight"]}
    state |= {"bn.weight": torch.rand(16), "bn.num_batches_tracked": torch.tensor(7)}
    state |= {"fc.weight": weights(torch.float32, (20, 64), rng), "fc.bias": torch.rand(20)}
    for key, mask in masks.items():
        state[key] = state[key].masked_fill(~mask, 0)
    return state, masks


@settings(max_examples=150)
@given(checkpoint_=checkpoints())
def test_everything_comes_back_bit_for_bit(
    folder: Path, checkpoint_: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    state, masks = checkpoint_
    path = folder / "any.safetensors"
    meta = {"data": {"classes": ["a", "ü"], "mean": [0.1, 1 / 3, 1e-300]}, "none": None, "loss": float("inf")}
    pack(path, state=state, masks=masks, meta=meta, verify=False)
    back = packed.load(path)
    assert list(back.state) == list(state)
    assert all(same_bits(back.state[key], state[key]) for key in state)
    assert back.masks == (None if not masks else back.masks) and (back.masks or {}).keys() == masks.keys()
    assert all(torch.equal(back.masks[key], masks[key]) for key in masks)
    assert back.meta.values == meta and back.format == "packed"
    alone = packed.load_state(path)
    assert list(alone) == list(state) and all(same_bits(alone[key], state[key]) for key in state)


@settings(max_examples=40)
@given(checkpoint_=checkpoints())
def test_the_safetensors_library_reads_what_was_never_pruned(
    folder: Path, checkpoint_: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    state, masks = checkpoint_
    path = folder / "plain.safetensors"
    pack(path, state=state, masks=masks, meta={}, keep_plain=True, verify=False)
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        for key, tensor in state.items():
            if key in masks or key.endswith(".packed") or tensor.dtype == torch.complex128:
                assert file.get_tensor(f"{key}.packed").dtype == torch.uint8
            else:
                assert same_bits(file.get_tensor(key), tensor)
        assert len(names) == len(state) and file.metadata()["format"] == "starfire-packed"


def test_a_live_zero_stays_alive_and_a_negative_zero_keeps_its_sign(tmp_path: Path) -> None:
    mask = torch.tensor([[True, True, False, True]])
    state = {"w": torch.tensor([[0.0, -0.0, 0.0, float("nan")]])}
    pack(tmp_path / "a", state=state, masks={"w": mask}, meta={})
    back = packed.load(tmp_path / "a")
    assert back.masks is not None and torch.equal(back.masks["w"], mask)
    assert back.state["w"].signbit().tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_payloads_and_subnormals_survive(tmp_path: Path, dtype: torch.dtype) -> None:
    item = torch.empty((), dtype=dtype).element_size()
    patterns = np.arange(1 << 16, dtype=np.uint64) << np.uint64(8 * item - min(16, 8 * item))
    raw = patterns.view(np.uint8).reshape(-1, 8)[:, :item].copy() if item > 1 else np.arange(256, dtype=np.uint8)
    weight = torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(16, -1)
    pack(tmp_path / "a", state={"w": weight}, masks={"w": torch.ones(weight.shape, dtype=torch.bool)}, meta={})
    assert same_bits(packed.load_state(tmp_path / "a")["w"], weight)


def test_equal_input_gives_equal_bytes_whatever_the_threads(tmp_path: Path) -> None:
    state, masks = small()
    before = torch.get_num_threads()
    try:
        for name, threads in (("a", 1), ("b", 3), ("c", 3)):
            torch.set_num_threads(threads)
            pack(tmp_path / name, state=state, masks=masks, meta={"x": 1})
    finally:
        torch.set_num_threads(before)
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1


def test_strides_do_not_matter(tmp_path: Path) -> None:
    state, masks = small()
    pack(tmp_path / "a", state=state, masks=masks, meta={})
    state["conv.weight"] = state["conv.weight"].to(memory_format=torch.channels_last)
    masks["conv.weight"] = masks["conv.weight"].to(memory_format=torch.channels_last)
    state["fc.weight"] = state["fc.weight"].t().contiguous().t()
    pack(tmp_path / "b", state=state, masks=masks, meta={})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_effort_gives_the_same_weights_and_more_effort_is_never_larger(tmp_path: Path) -> None:
    state, masks = small()
    sizes = [
        pack(tmp_path / effort, state=state, masks=masks, meta={}, effort=effort).packed_bytes
        for effort in ("fast", "normal", "best")
    ]
    assert sizes == sorted(sizes, reverse=True)
    for effort in ("fast", "best"):
        back = packed.load_state(tmp_path / effort)
        assert all(same_bits(back[key], state[key]) for key in state)


def test_dead_weights_that_are_not_zero_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for value in (1e-45, -0.0, float("nan")):
        state = {"w": torch.tensor([[1.0, value]])}
        with pytest.raises(Mismatch, match=r"w has 1 dead weights .* --masks from-zeros"):
            pack(tmp_path / "a", state=state, masks={"w": torch.tensor([[True, False]])}, meta={})
    with pytest.raises(Mismatch, match="no weight of its shape"):
        pack(tmp_path / "a", state=state, masks={"w": torch.tensor([True, False])}, meta={})
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    with pytest.raises(StarfireError, match=r"s is a tensor of torch.sparse_coo, which cannot be packed"):
        pack(tmp_path / "a", state={"s": torch.eye(3).to_sparse()}, masks=None, meta={})
    with pytest.raises(StarfireError, match="__metadata__"):
        pack(tmp_path / "a", state={"__metadata__": torch.ones(1)}, masks=None, meta={})


def test_a_file_that_does_not_read_back_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starfire_cli.formats.packed import live_values

    state, masks = small()
    pack(tmp_path / "a", state=state, masks=masks, meta={})
    before = (tmp_path / "a").read_bytes()
    monkeypatch.setattr(live_values, "_rotate_left", lambda words: words)
    with pytest.raises(StarfireError, match=r"a was not written: conv.weight, fc.weight did not read back"):
        pack(tmp_path / "a", state=state, masks=masks, meta={})
    assert (tmp_path / "a").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_large_unpruned_layers_are_packed_and_small_ones_stay_plain(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"big": torch.randn(300, 300), "tiny": torch.randn(4, 3, 3, 3), "bias": torch.randn(5000)}
    sizes = {t.key: t for t in pack(tmp_path / "a", state=state, masks=None, meta={}).tensors}
    assert {key: size.encoding for key, size in sizes.items()} == {"big": "dense", "tiny": "plain", "bias": "plain"}
    assert sizes["big"].packed_bytes < 0.87 * sizes["big"].dense_bytes
    sizes = {t.key: t for t in pack(tmp_path / "a", state=state, masks=None, meta={}, keep_plain=True).tensors}
    assert {size.encoding for size in sizes.values()} == {"plain"}


def test_zeros_without_a_mask_take_no_space_and_get_no_mask(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"w": torch.randn(200, 200).masked_fill(torch.rand(200, 200) > 0.1, 0)}
    result = pack(tmp_path / "a", state=state, masks=None, meta={})
    assert result.packed_bytes < 0.15 * result.dense_bytes
    back = packed.load(tmp_path / "a")
    assert back.masks is None and same_bits(back.state["w"], state["w"])


def test_checkpoint_load_knows_packed_files(tmp_path: Path) -> None:
    state, masks = small()
    pack(tmp_path / "model.safetensors", state=state, masks=masks, meta={"x": [1]})
    back = checkpoint.load(tmp_path / "model.safetensors")
    assert back.format == "packed" and back.meta.values == {"x": [1]} and back.masks is not None
    loaded = starfire_cli.load(tmp_path / "model.safetensors")
    assert list(loaded) == list(state) and all(same_bits(loaded[key], state[key]) for key in state)


def test_loaded_tensors_own_their_memory(tmp_path: Path) -> None:
    state, masks = small()
    pack(tmp_path / "a", state=state, masks=masks, meta={})
    first = packed.load_state(tmp_path / "a")
    for tensor in first.values():
        tensor.fill_(3)
    (tmp_path / "a").unlink()
    pack(tmp_path / "a", state=state, masks=masks, meta={})
    assert all(same_bits(value, state[key]) for key, value in packed.load_state(tmp_path / "a").items())
