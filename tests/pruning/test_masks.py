from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from starfire_cli.pruning.masks import apply_masks, digest, disagreements, masks_from_zeros, pack_bits, unpack_bits

shapes = st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple)


@st.composite
def some_masks(draw: st.DrawFn) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.rand(draw(shapes), generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))


@given(mask=some_masks())
def test_packed_bits_come_back(mask: Tensor) -> None:
    bits = pack_bits(mask)
    assert bits.dtype == torch.uint8
    assert bits.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack_bits(bits, tuple(mask.shape)), mask)


@given(mask=some_masks())
def test_bit_i_of_byte_j_is_weight_8j_plus_i(mask: Tensor) -> None:
    bits = pack_bits(mask).tolist()
    flat = mask.flatten().tolist()
    assert [bool(bits[n // 8] >> n % 8 & 1) for n in range(len(flat))] == flat
    assert all(not bits[n // 8] >> n % 8 & 1 for n in range(len(flat), 8 * len(bits)))


def test_packing_reads_in_c_order_whatever_the_strides() -> None:
    mask = torch.rand(4, 6, 3, 3) < 0.5
    expected = pack_bits(mask)
    assert torch.equal(pack_bits(mask.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(pack_bits(mask.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)), expected)


@pytest.mark.parametrize(
    "bits",
    [torch.zeros(1, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(2), torch.zeros(1, 2).byte()],
    ids=["too-short", "too-long", "floats", "two-dimensional"],
)
def test_bits_that_do_not_fit_are_refused(bits: Tensor) -> None:
    with pytest.raises(ValueError, match="do not fit shape"):
        unpack_bits(bits, (3, 3))


def test_the_digest_of_today_is_the_digest_of_tomorrow() -> None:
    """Written out by hand: files hold digests, so the recipe may never change."""
    masks = {"b.weight": torch.tensor([[True, False, True]]), "a.weight": torch.ones(2, 1, 3, 3, dtype=torch.bool)}
    written = b"a.weight\x002x1x3x3\x00" + b"\xff\xff\x03" + b"b.weight\x001x3\x00" + b"\x05"
    assert digest(masks) == hashlib.sha256(written).hexdigest()
    assert digest(masks) == "2495f2e1b1049880f5f90759380979bb9bed78c9f4e9292072ad09b887f16eac"


def test_the_digest_sees_the_masks_and_nothing_else() -> None:
    masks = {"x": torch.rand(4, 4, 3, 3) < 0.5, "y": torch.rand(5, 7) < 0.5}
    same = {"y": masks["y"].t().clone().t(), "x": masks["x"].to(memory_format=torch.channels_last)}
    assert digest(masks) == digest(same)
    flipped = {**masks, "y": masks["y"].clone()}
    flipped["y"][4, 6] ^= True
    renamed = {"x": masks["x"], "z": masks["y"]}
    reshaped = {**masks, "y": masks["y"].reshape(7, 5)}
    assert len({digest(m) for m in (masks, flipped, renamed, reshaped, {"x": masks["x"]}, {})}) == 6


def test_masks_and_weights_that_contradict_each_other() -> None:
    state = {"a": torch.tensor([0.0, 1.0, -0.0, 2.0]), "b": torch.tensor([1.0, 2.0]), "bias": torch.tensor([0.0])}
    masks = masks_from_zeros(state, ["a", "b"])
    assert {k: m.tolist() for k, m in masks.items()} == {"a": [False, True, False, True], "b": [True, True]}
    assert disagreements(state, masks) == {}
    masks = {"a": torch.tensor([True, False, False, False]), "b": torch.tensor([True, True])}
    assert disagreements(state, masks) == {"a": (2, 1)}


def test_applied_masks_leave_positive_zeros_even_of_inf_and_nan() -> None:
    weight = torch.tensor([-1.0, torch.inf, torch.nan, -0.0, 3.0])
    state = {"a": torch.nn.Parameter(weight), "other": torch.ones(2)}
    apply_masks(state, {"a": torch.tensor([False, False, False, False, True])})
    assert state["a"].tolist() == [0, 0, 0, 0, 3]
    assert not state["a"].signbit().any()
    assert state["other"].tolist() == [1, 1]
