"""Codebooks in packed files: exact round trips, sizes, versions, and damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.formats.packed import codebook, read
from starfire_cli.formats.packed.dtypes import BY_NAME
from starfire_cli.formats.packed.estimate import estimate
from starfire_cli.formats.packed.rounding import share_state
from starfire_cli.formats.packed.write import pack
from starfire_cli.pruning.codebook import Codebook
from starfire_cli.pruning.ties import ties_of
from tests.formats.packed.test_packed_damage import layer_bytes, resigned, with_payload
from tests.formats.packed.test_packed_reader import agrees, every_encoding
from tests.helpers.packed_strategies import same_bits


def packed(path: Path, state: dict[str, Tensor], masks: dict[str, Tensor], spec: Codebook) -> dict[str, Any]:
    """Share, pack, read back with both readers; the metadata."""
    shared, _ = share_state(state, masks, spec)
    pack(path, state=shared, masks=masks, meta={}, codebooks=True, verify=False)
    back = read.load(path)
    assert all(same_bits(back.state[key], tensor) for key, tensor in shared.items())
    assert (back.masks or {}).keys() == masks.keys()
    agrees(path, shared, masks)
    return header(path.read_bytes())["__metadata__"]


def sizes_of(path: Path) -> dict[str, int]:
    return {key: layer.size for key, layer in read.PackedFile(path).layers.items()}


def header(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_every_encoding_comes_back_to_the_bit(tmp_path: Path, bits: int) -> None:
    state, masks = every_encoding()
    about = packed(tmp_path / "a", state, masks, Codebook(bits=bits, init="density", noise=0))
    layers = json.loads(about["layers"])
    assert about["version"] == "2" and layers.keys() == masks.keys()
    large = [key for key, mask in masks.items() if int(mask.sum()) > 4 << bits]
    assert all(layers[key]["codebook"] == 1 << bits for key in large) and large


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_values_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    state, masks = every_encoding()
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    about = packed(tmp_path / "a", state, masks, Codebook(bits=4))
    # Words of 16 bits that are few are written as an alphabet anyway, which may be as short.
    assert (about["version"] == "2" or dtype.itemsize == 2) and "stored" not in about["layers"]
    assert all(
        size < 0.6 * int(masks[key].sum()) + masks[key].numel() / 8 + 200
        for key, size in sizes_of(tmp_path / "a").items()
    )


def test_what_is_no_weight_stays_exact_and_odd_layers_are_no_trouble(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(40, 60, generator=generator)
    odd = torch.randn(60, 40, generator=generator)
    odd[0, :5] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
    holes = torch.randn(40, 40, generator=generator) * (torch.rand(40, 40, generator=generator) < 0.3)
    state = {
        "conv.weight": torch.randn(30, 20, 3, 3, generator=generator),
        "conv.bias": torch.randn(30, generator=generator),
        "bn.running_var": torch.rand(30, generator=generator),
        "bn.steps": torch.tensor(3),
        "embedding": table,
        "head": table,
        "odd": odd,
        "holes": holes,
        "one": torch.zeros(20, 20).index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(0.7)),
        "none": torch.zeros(20, 20),
        "ints": torch.randint(-5, 5, (300, 20), generator=generator),
        "complex": torch.randn(20, 20, dtype=torch.complex64, generator=generator),
        "empty": torch.zeros(0, 5),
    }
    masks = {"conv.weight": torch.rand(30, 20, 3, 3, generator=generator) < 0.5}
    masks |= {"one": state["one"] != 0, "none": state["none"] != 0}
    state["conv.weight"][~masks["conv.weight"]] = 0
    live_zero = tuple(masks["conv.weight"].nonzero()[0])
    state["conv.weight"][live_zero] = 0
    about = packed(tmp_path / "a", state, masks, Codebook(bits=4))
    shared = read.load(tmp_path / "a").state
    assert about["version"] == "2" and ties_of(shared) == {"head": "embedding"}
    exact = {"conv.bias", "bn.running_var", "bn.steps", "one", "none", "ints", "complex", "empty"}
    assert {key for key in state if same_bits(shared[key], state[key])} == exact
    assert len(shared["conv.weight"][masks["conv.weight"]].unique()) <= 16
    assert torch.equal(shared["holes"] == 0, holes == 0)  # no mask: zeros are no values
    assert len(shared["holes"].unique()) <= 17
    finite = odd.isfinite()
    assert same_bits(shared["odd"][0, :5], odd[0, :5]) and len(shared["odd"][finite].unique()) <= 17


def test_sharing_twice_changes_nothing_and_costs_nothing() -> None:
    state, masks = every_encoding()
    once, cost = share_state(state, masks, Codebook(bits=3))
    twice, nothing = share_state(once, masks, Codebook(bits=3))
    assert all(same_bits(once[key], twice[key]) for key in once)
    assert cost.max_error > 0 == nothing.max_error and cost.count == sum(int(mask.sum()) for mask in masks.values())
    errors = torch.cat([(once[key] - state[key]).abs()[mask] for key, mask in masks.items()]).double()
    assert cost.max_error == float(errors.max()) and cost.mean_error == pytest.approx(float(errors.mean()), rel=1e-6)


def few_values(count: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, generator=generator)[torch.randint(0, count, shape, generator=generator)]


def test_without_being_asked_it_takes_a_codebook_where_that_is_worth_a_new_version(tmp_path: Path) -> None:
    small, large = few_values(20, 10, 10), few_values(30, 100, 100)
    noise = torch.randn(300, 300)
    exact = {"state": {"small": small, "noise": noise}, "masks": {}, "meta": {}}
    pack(tmp_path / "old", **exact)  # type: ignore[arg-type]
    assert header((tmp_path / "old").read_bytes())["__metadata__"]["version"] == "1"
    sizes = pack(tmp_path / "new", state={"small": small, "large": large}, masks={}, meta={})
    assert header((tmp_path / "new").read_bytes())["__metadata__"]["version"] == "2"
    size = {tensor.key: tensor for tensor in sizes.tensors}["large"]
    assert size.codebook == 30
    # Five bits a number, and the 30 words: what a perfect coder takes.
    p = np.unique(large.numpy(), return_counts=True)[1] / large.numel()
    least = -(p * np.log2(p)).sum() * large.numel() / 8 + 30 * 4
    assert size.bound_bytes == pytest.approx(least, rel=1e-9) and least < size.packed_bytes < 1.05 * least
    assert estimate("large", large, None).bound == pytest.approx(least, rel=1e-9)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=400), st.integers(1, 7))
def test_a_codebook_is_found_whatever_the_order_and_the_pieces(numbers: list[int], chunk: int) -> None:
    words = np.array(numbers, np.uint32) * 7919
    before = codebook._CHUNK
    codebook._CHUNK = chunk
    try:
        found = codebook.find(words, BY_NAME["F32"], np.arange(words.size) % 3 != 1)
    finally:
        codebook._CHUNK = before
    live = words[np.arange(words.size) % 3 != 1]
    if len(set(live.tolist())) > 256:
        assert found is None
    else:
        assert found is not None and found.words.tolist() == sorted(set(live.tolist()))
        assert np.array_equal(found.words[found.numbers], live)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, "w", of 20 values, with a mask."""
    path = tmp_path_factory.mktemp("codebook") / "model.safetensors"
    weight = few_values(20, 30, 40)
    mask = torch.rand(30, 40) < 0.5
    pack(path, state={"w": weight.masked_fill(~mask, 0)}, masks={"w": mask}, meta={}, codebooks=True, effort="fast")
    assert header(path.read_bytes())["__metadata__"]["version"] == "2"
    return path


HOSTILE: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "version 1": (lambda h, a: a.update(version="1"), "w has a codebook, which version 1 has not"),
    "version 3": (lambda h, a: a.update(version="3"), "version '3'; this starfire reads 1 and 2"),
    "none": (lambda h, a: a["layers"]["w"].pop("codebook"), "w: "),
    "null": (lambda h, a: a["layers"]["w"].update(codebook=None), "a codebook of None values"),
    "zero": (lambda h, a: a["layers"]["w"].update(codebook=0), "a codebook of 0 values"),
    "true": (lambda h, a: a["layers"]["w"].update(codebook=True), "a codebook of True values"),
    "text": (lambda h, a: a["layers"]["w"].update(codebook="20" * 99), "a codebook of 2020"),
    "float": (lambda h, a: a["layers"]["w"].update(codebook=20.0), "a codebook of 20.0 values"),
    "many": (lambda h, a: a["layers"]["w"].update(codebook=257), "a codebook of 257 values"),
    "huge": (lambda h, a: a["layers"]["w"].update(codebook=10**400), "a codebook of 1000"),
    "more than live": (
        lambda h, a: a["layers"]["w"].update(codebook=200, live=100),
        "a codebook of 200 values for 100",
    ),
    "fewer": (lambda h, a: a["layers"]["w"].update(codebook=19), "80 bytes are stored where 76 belong"),
    "bytes": (lambda h, a: a["layers"]["w"].update(dtype="I8"), "of I8"),
    "complex": (lambda h, a: a["layers"]["w"].update(dtype="C64"), "of C64"),
    "other type": (lambda h, a: a["layers"]["w"].update(dtype="BF16"), "belong"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_codebooks_are_refused(file: Path, tmp_path: Path, name: str) -> None:
    change, says = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(resigned(file.read_bytes(), change))
    with pytest.raises(StarfireError, match=says) as caught:
        read.load(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_number_out_of_the_codebook_and_a_bomb_are_refused(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    layer = json.loads(header(data)["__metadata__"]["layers"])["w"]
    whole = layer_bytes(data, "w")
    words = whole.index(bytes([0, 80])) + 2 + 80  # a blob of 80 bytes as they are; behind it, the numbers
    path = tmp_path / "hostile.safetensors"

    def says(numbers: bytes) -> str:
        path.write_bytes(with_payload(data, "w", whole[:words] + numbers))
        with pytest.raises(StarfireError) as caught:
            read.load_state(path)
        return str(caught.value)

    def number(value: int) -> bytes:
        return bytes([value & 127 | 128, value >> 7 & 127 | 128, value >> 14])

    def pairs(value: int) -> bytes:
        """So many numbers of four bits, as they are."""
        return b"\0" + number(half) + bytes([value * 17]) * (half - 1) + bytes([value * 17 if live % 2 == 0 else value])

    live = layer["live"]
    half = -(-live // 2)
    for late in (5, 15):
        assert "a value is not among the 20 of its codebook" in says(pairs(15) + pairs(late))
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(1 << 24))
    assert f"16777216 bytes are compressed where {half} belong" in says(b"\1" + number(len(bomb)) + bomb)
    assert f"16777216 bytes are compressed where {half} belong" in says(pairs(15) + b"\1" + number(len(bomb)) + bomb)
    assert "bytes are left over" in says(pairs(15) + pairs(4) + b"\1")
    assert "are announced" in says(b"\0" + number(live))
    path.write_bytes(with_payload(data, "w", whole[:words] + pairs(15) + pairs(4)))
    weight = read.load_state(path)["w"]
    assert len(weight[weight != 0].unique()) == 1  # all are the last of the twenty
