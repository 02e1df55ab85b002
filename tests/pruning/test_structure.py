"""The structure that inspect names is the one a mask was made with, and its estimate what compress needs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.formats.packed.estimate import estimate
from starfire_cli.formats.packed.write import pack
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Goal, Layer, apply_cuts, layers_of_state
from starfire_cli.pruning.stats import layer_stats
from starfire_cli.pruning.structure import structure_of
from starfire_cli.workflows.inspect.run import inspect


def layer_of(shape: tuple[int, ...], groups: int = 1) -> Layer:
    kind = "linear" if len(shape) == 2 else "pointwise" if shape[2:] == (1, 1) else "window"
    return Layer(name="x", key="x.weight", kind=kind, shape=shape, groups=groups)  # type: ignore[arg-type]


def structure(alive: torch.Tensor, groups: int = 1) -> str:
    layer = layer_of(tuple(alive.shape), groups)
    return structure_of(layer, alive, layer_stats(layer, alive))


def by_method(spec: str, shape: tuple[int, ...], target: float, groups: int = 1) -> str:
    torch.manual_seed(0)
    layer, weight = layer_of(shape, groups), torch.randn(shape)
    method = (LINEAR_METHODS if len(shape) == 2 else CONV_METHODS).build(spec)
    budget = method.budget(layer, Goal(target=target))
    assert budget is not None
    return structure(apply_cuts(weight, torch.ones(shape, dtype=torch.bool), budget, groups), groups)


@pytest.mark.parametrize(
    ("spec", "shape", "target", "groups", "expected"),
    [
        ("window", (16, 8, 3, 3), 0.5, 1, "window 4 of 9"),
        ("window:max_nonzero=2", (16, 8, 3, 3), 0.5, 1, "window 2 of 9"),
        ("window", (16, 8, 7, 7), 0.5, 1, "window 24 of 49"),
        ("window", (16, 1, 3, 3), 0.5, 16, "window 4 of 9"),
        ("window", (16, 8, 1, 1), 0.5, 1, "ck"),
        ("ck", (16, 8, 3, 3), 0.6, 1, "ck"),
        ("ck", (16, 4, 3, 3), 0.5, 2, "ck"),
        ("ck", (16, 8, 1, 1), 0.3, 1, "ck"),
        ("intra", (32, 16, 3, 3), 0.6, 1, "window 6 of 9 + ck"),
        ("inter", (32, 16, 3, 3), 0.6, 1, "window 6 of 9 + ck"),
        ("fine", (40, 64), 0.5, 1, "unstructured"),
        ("fine", (40, 64), 0.9, 1, "unstructured"),
        ("block", (40, 64), 0.5, 1, "block 4"),
        ("block:n=3", (40, 64), 0.5, 1, "block 3"),
        ("block:n=2", (41, 63), 0.7, 1, "block 2"),
        ("two-tier", (40, 64), 0.6, 1, "block 4 + unstructured"),
        ("fine", (40, 64), 0, 1, "dense"),
    ],
)
def test_what_the_methods_make(spec: str, shape: tuple[int, ...], target: float, groups: int, expected: str) -> None:
    assert by_method(spec, shape, target, groups) == expected


def test_what_others_make() -> None:
    alive = torch.ones(8, 8, 3, 3, dtype=torch.bool)
    alive[:3] = False
    assert structure(alive) == "output channels"
    alive[:, 5] = False
    assert structure(alive) == "channels"
    assert structure(alive.transpose(0, 1).contiguous()[:, 3:]) == "output channels"
    assert structure(torch.zeros(4, 4, dtype=torch.bool)) == "all dead"
    kernels = torch.ones(8, 8, 3, 3, dtype=torch.bool)
    kernels[0, :3], kernels[1, 0] = False, False
    assert structure(kernels) == "kernels"
    kernels[2, 2, 0, 0] = False
    assert structure(kernels) == "unstructured"
    two_of_four = torch.tensor([True, True, False, False, False, True, True, False]).repeat(6, 1)
    two_of_four[1] = two_of_four[1].flip(0)
    assert structure(two_of_four) == "2 of 4 inputs"
    turns = torch.stack([two_of_four, ~two_of_four, two_of_four], -1)
    assert structure(torch.stack([turns, ~turns, turns], -1)) == "2 of 4 inputs"


@given(
    shape=st.sampled_from([(6, 4, 3, 3), (6, 8, 1, 1), (6, 8), (6, 1, 3, 3)]),
    seed=st.integers(0, 10**6),
    share=st.floats(0, 1),
)
def test_what_is_named_holds(shape: tuple[int, ...], seed: int, share: float) -> None:
    """Any mask has a name, and the name is true of it."""
    torch.manual_seed(seed)
    alive = torch.rand(shape) >= share
    name = structure(alive)
    kept = alive.flatten(2).sum(-1) if len(shape) == 4 else alive.long()
    window = math.prod(shape[2:])
    whole = bool(((kept == 0) | (kept == window)).all())
    checks = {
        "dense": bool(alive.all()),
        "all dead": not alive.any(),
        "ck": whole and len(set((kept == 0).sum(0).tolist())) == 1,
        "kernels": whole,
        "output channels": whole,
        "input channels": whole,
        "channels": whole,
        "unstructured": True,
        "2 of 4 inputs": int(alive.sum()) * 2 == alive.numel(),
    }
    if name.startswith("window"):
        most = int(name.split()[1])
        assert set(kept.flatten().tolist()) <= {0, most} and ("+" in name or 0 not in kept)
    elif name.startswith("block"):
        assert len(shape) == 2
    else:
        assert checks[name]


def literal_bound(weight: torch.Tensor, alive: torch.Tensor) -> float:
    """docs/compress.md in plain Python, for a float32 linear layer."""
    live = weight[alive].tolist()
    exponents: dict[int, int] = {}
    for value in live:
        bits = int.from_bytes(torch.tensor([value]).numpy().tobytes(), "little")
        exponents[bits >> 23 & 255] = exponents.get(bits >> 23 & 255, 0) + 1
    entropy = sum(n * math.log2(len(live) / n) for n in exponents.values())
    return (literal_mask_bits(alive.tolist()) + entropy + 24 * len(live)) / 8


def literal_mask_bits(alive: list[list[bool]]) -> float:
    """The cheapest of: where the live weights are; how many each column keeps, and which; which tiles are live at all,
    and where the live weights are in them (if that is worth a hundredth).
    """
    O, I, kept = len(alive), len(alive[0]), sum(map(sum, alive))
    if kept == O * I:
        return 0
    anywhere = math.log2(math.comb(O * I, kept))
    columns = [sum(row[i] for row in alive) for i in range(I)]
    each = sum(math.log2(math.comb(O, n)) for n in columns)
    counts = sum(columns.count(n) * math.log2(I / columns.count(n)) for n in set(columns))
    tried = [anywhere, each + counts]
    for side in (8, 4, 3, 2):
        tiles = [(o, i) for o in range(0, O, side) for i in range(0, I, side)]
        inside = [
            [alive[y][x] for y in range(o, min(O, o + side)) for x in range(i, min(I, i + side))] for o, i in tiles
        ]
        live = [tile for tile in inside if any(tile)]
        bits = math.log2(math.comb(len(tiles), len(live))) + math.log2(math.comb(sum(map(len, live)), kept))
        tried += [bits] if bits <= 0.99 * anywhere else []
    return min(tried)


@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.99))
def test_the_bound_in_plain_python(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    weight, alive = torch.randn(12, 10), torch.rand(12, 10) >= share
    found = estimate("weight", weight, alive)
    assert found.bound == pytest.approx(literal_bound(weight, alive), abs=1e-3)
    assert found.nonfinite == 0


@pytest.mark.parametrize("method", ["ck", "window", "intra"])
def test_the_estimate_is_what_compress_needs(tmp_path: Path, method: str) -> None:
    torch.manual_seed(0)
    state = {f"c{i}.weight": torch.randn(64, 64, 3, 3) * 0.05 for i in range(3)} | {"fc.weight": torch.randn(100, 64)}
    conv, masks = CONV_METHODS.build(method), {}
    for layer in layers_of_state(state)[:3]:
        budget = conv.budget(layer, Goal(target=0.7))
        assert budget is not None
        masks[layer.key] = apply_cuts(state[layer.key], torch.ones(layer.shape, dtype=torch.bool), budget)
    save(tmp_path / "a.pt", state=state, masks=masks, meta={})
    found = load(tmp_path / "a.pt")
    packed = pack(tmp_path / "b.safetensors", state=found.state, masks=found.masks, meta={})
    result = inspect(found)
    assert result.bytes_packed == pytest.approx(packed.packed_bytes, rel=0.02)
    assert result.bytes_bound < packed.packed_bytes


def unusual() -> dict[str, torch.Tensor]:
    """What a state dict may hold beside float32 kernels."""
    torch.manual_seed(1)
    half = torch.randn(20, 30).half() * (torch.rand(20, 30) > 0.6)
    tiles = torch.randn(24, 24) * torch.eye(6).repeat_interleave(4, 0).repeat_interleave(4, 1)
    return {
        "conv.weight": torch.randn(16, 8, 3, 3),
        "norm.weight": torch.ones(16),
        "norm.bias": torch.zeros(16),
        "norm.num_batches_tracked": torch.tensor(77),
        "half.weight": half,
        "tiles.weight": tiles,
        "point.weight": torch.randn(16, 16, 1, 1) * (torch.rand(16, 16, 1, 1) > 0.9),
        "signs.weight": torch.where(torch.rand(9, 9) > 0.5, torch.randn(9, 9), -torch.zeros(())),
        "odd.packed": torch.randn(40) * (torch.rand(40) > 0.5),
        "fft.weight": torch.randn(6, 6, dtype=torch.complex64) * (torch.rand(6, 6) > 0.5),
        "wide.weight": torch.randn(5, 5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "cube": torch.randn(3, 4, 5),
        "table": torch.arange(12).reshape(3, 4),
    }


@pytest.mark.parametrize("masked", [(), ("conv.weight",), ("conv.weight", "tiles.weight", "fft.weight", "cube")])
def test_inspect_and_compress_say_one_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], masked: tuple[str, ...]
) -> None:
    state = unusual()
    masks = {key: torch.rand(state[key].shape) > 0.3 for key in masked}
    save(tmp_path / "a.pt", state=state, masks=masks, meta={})
    assert main(["compress", str(tmp_path / "a.pt"), "-o", str(tmp_path / "b.safetensors"), "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    for name in ("a.pt", "b.safetensors"):
        assert main(["inspect", str(tmp_path / name), "--json"]) == 0
        total = json.loads(capsys.readouterr().out)["total"]
        assert total["bytes_entropy_bound"] == packed["bound_bytes"]
        assert total["bytes_packed_estimate"] == pytest.approx(packed["packed_bytes"], rel=0.1)


def test_the_estimate_counts_a_long_header(tmp_path: Path) -> None:
    state = {f"a.very.long.name.of.a.layer.{i}.weight": torch.randn(4) for i in range(50)}
    meta = {"data": {"classes": [f"class {i}" for i in range(1000)]}}
    save(tmp_path / "a.pt", state=state, masks={}, meta=meta)
    packed = pack(tmp_path / "b.safetensors", state=state, masks={}, meta=meta)
    assert inspect(load(tmp_path / "a.pt")).bytes_packed == pytest.approx(packed.packed_bytes, rel=0.03)
