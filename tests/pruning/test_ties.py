"""Tied weights: one tensor under several names is pruned once, counted once, and one tensor in every file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from starfire_cli.cli import main
from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.formats.packed.container import Entry, write
from starfire_cli.formats.packed.read import load_state
from starfire_cli.formats.packed.write import pack
from starfire_cli.pruning import layers_of_model
from starfire_cli.pruning.channels.shrink import shrink
from starfire_cli.pruning.ties import overlapping, tie_as, ties_of, unify
from starfire_cli.sparse import sparsify
from tests.helpers import packed_reader
from tests.helpers.tied_networks import Apart, Embedded, Tied, Transposed, Twice, Untied

Capture = pytest.CaptureFixture[str]
State = dict[str, Tensor]
PAIRS = (("z.weight", "b.weight"), ("up.weight", "down.weight"))
# By hand: 8x3x3x3 + 8x8x3x3 + 8x8 + 10x8 weights, and five biases of 8 and one of 10.
PRUNABLE, PARAMETERS = 216 + 576 + 64 + 80, 216 + 576 + 64 + 80 + 5 * 8 + 10


def network(kind: type[nn.Module] = Tied) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def spec(kind: type[nn.Module] = Tied) -> list[str]:
    return ["--model", f"tests.helpers.tied_networks:{kind.__name__}"]


def run(capsys: Capture, *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def inspect(capsys: Capture, *arguments: object) -> dict[str, Any]:
    return json.loads(run(capsys, "inspect", *arguments, "--json"))


def one_tensor(state: State) -> None:
    """Both pairs are one tensor each, whatever the rest: what happens to one name happens to the other."""
    for first, other in PAIRS:
        before = state[other].clone()
        state[first].add_(1)
        assert torch.equal(state[other], before + 1)
        state[first].sub_(1)


def halved(state: State) -> State:
    """Of every weight matrix and kernel the smaller half is zero, tied names alike."""
    result = {}
    for key, tensor in state.items():
        if tensor.ndim >= 2:
            tensor = torch.where(tensor.abs() > tensor.abs().median(), tensor, torch.zeros(()))
        result[key] = tensor
    for first, other in PAIRS:
        result[other] = result[first]
    return result


def masks_of(state: State) -> State:
    return {key: t != 0 for key, t in state.items() if t.ndim >= 2 and key not in ("b.weight", "down.weight")}


def test_what_is_a_tie_and_what_merely_overlaps() -> None:
    memory, own = torch.arange(100.0).reshape(10, 10), torch.ones(3)
    assert ties_of({"a": memory, "b": memory[:], "c": memory.clone(), "d": own}) == {"b": "a"}
    assert ties_of({"a": memory, "b": memory.t(), "c": memory[:5], "d": memory.view(100), "e": own[:0]}) == {}
    assert ties_of({"a": own, "b": torch._neg_view(own)}) == {}
    assert overlapping({"a": memory, "b": memory[:], "d": own}) == {}
    assert set(overlapping({"a": memory, "b": memory.t(), "d": own})) == {"a", "b"}
    assert overlapping({"left": memory[:, :5], "right": memory[:, 5:]}) == {}
    assert overlapping({"even": memory[::2], "odd": memory[1::2]}) == {}
    assert set(overlapping({"left": memory[:, :6], "right": memory[:, 5:], "again": memory[:, 5:]})) == {
        *("left", "right", "again")
    }


@pytest.mark.parametrize("seed", range(5))
def test_overlaps_are_those_of_a_count_of_every_byte(seed: int) -> None:
    draw = np.random.default_rng(seed)
    memory = torch.zeros(64)
    views = {}
    for name in "abcdefgh":
        shape, steps = draw.integers(1, 4, 2).tolist(), draw.integers(1, 7, 2).tolist()
        steps[0] += shape[1] * steps[1]  # no element twice within one view
        views[name] = memory.as_strided(shape, steps, int(draw.integers(0, 12)))
    places = {
        k: set(torch.arange(64).as_strided(v.shape, v.stride(), v.storage_offset()).flatten().tolist())
        for k, v in views.items()
    }
    ties = ties_of(views)
    expected = {k for k in views for j in views if ties.get(k, k) != ties.get(j, j) and places[k] & places[j]}
    found = set(overlapping(views))
    assert found == expected or (expected <= found and sum(map(len, places.values())) > 64)


@pytest.mark.parametrize("kind", [Tied, Apart, Twice, Embedded])
def test_a_tie_is_one_layer_of_a_model(kind: type[nn.Module]) -> None:
    layers, left_out = layers_of_model(network(kind))
    assert [layer.key for layer in layers] == ["stem.weight", "z.weight", "up.weight", "fc.weight"]
    assert {("b", "shares its weight with z"), ("down", "shares its weight with up")} <= set(left_out)
    with torch.device("meta"):
        assert layers_of_model(kind())[0] == layers


def test_neither_of_two_overlapping_layers_is_pruned() -> None:
    layers, left_out = layers_of_model(network(Transposed))
    assert [layer.key for layer in layers] == ["stem.weight", "z.weight", "fc.weight"]
    assert {name for name, reason in left_out if "shares a part of its memory" in reason} == {"up", "down"}


def test_parameters_over_one_storage_become_one_parameter() -> None:
    net = network(Apart)
    assert len(list(net.parameters())) == 12
    assert unify(net) == [("b.weight", "z.weight"), ("down.weight", "up.weight")]
    assert net.b.weight is net.z.weight and len(list(net.parameters())) == 10


def _torch(path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), path)


def _save_model(path: Path, net: nn.Module) -> None:
    safetensors.torch.save_model(net, str(path))


def _shards(path: Path, net: nn.Module) -> None:
    _save_model(path.with_name("one.safetensors"), net)
    kept = safetensors.torch.load_file(path.with_name("one.safetensors"))
    path.write_text(json.dumps({"weight_map": dict.fromkeys(kept, "one.safetensors")}))


def _copies(path: Path, net: nn.Module) -> None:
    safetensors.torch.save_file({k: t.clone() for k, t in net.state_dict().items()}, path)


def _lacking(path: Path, net: nn.Module) -> None:
    gone = ("z.weight", "down.weight")
    safetensors.torch.save_file({k: t for k, t in net.state_dict().items() if k not in gone}, path)


@pytest.mark.parametrize(
    ("name", "write", "model"),
    [
        ("a.pt", _torch, []),
        ("a.pt", _torch, spec()),
        ("a.safetensors", _save_model, []),
        ("a.safetensors", _save_model, spec()),
        ("a.index.json", _shards, []),
        ("a.safetensors", _copies, spec()),
        ("a.safetensors", _lacking, spec()),
        ("a.pt", _torch, spec(Apart)),
        ("a.pt", _torch, spec(Twice)),
    ],
)
def test_a_tie_is_pruned_once_and_written_under_both_names(
    tmp_path: Path, capsys: Capture, name: str, write: Callable[[Path, nn.Module], None], model: list[str]
) -> None:
    twice = model == spec(Twice)
    net = network(Twice if twice else Tied)
    write(tmp_path / name, net)
    before = net.state_dict()
    run(capsys, "prune-mask", tmp_path / name, "--target", 0.5, "--method", "window", "-o", tmp_path / "out.pt", *model)
    found = load(tmp_path / "out.pt")
    assert found.state.keys() == before.keys() and found.masks is not None and len(found.masks) == 4
    for first, other in PAIRS:
        assert int((found.state[first] == 0).sum()) == {"z.weight": 8 * 8 * 5, "up.weight": 32}[first]
        live = found.state[other] != 0
        assert torch.equal(found.state[other][live], before[first][live])
    one_tensor(torch.load(tmp_path / "out.pt", weights_only=True)["model"])
    said = inspect(capsys, tmp_path / "out.pt", *model)
    assert said["total"]["prunable"] == PRUNABLE
    assert said["total"]["zeros"] == 8 * 3 * 5 + 8 * 8 * 5 + 32 + 40
    assert said["total"]["parameters"] == (PARAMETERS - 16 if twice else PARAMETERS)
    assert said["total"]["bytes_dense"] == 4 * said["total"]["parameters"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_tie_is_one_tensor_in_every_file(tmp_path: Path, capsys: Capture, layout: torch.memory_format) -> None:
    state = halved(network().state_dict())
    given = network().to(memory_format=layout)
    given.load_state_dict(state)
    save(tmp_path / "a.pt", state=given.state_dict(), masks=masks_of(state), meta={})
    run(capsys, "compress", tmp_path / "a.pt", "-o", tmp_path / "p.safetensors")
    run(capsys, "compress", tmp_path / "p.safetensors", "--unpack", "-o", tmp_path / "u.pt")
    run(capsys, "compress", tmp_path / "a.pt", "--values", "fp16", "-o", tmp_path / "h.safetensors")
    run(capsys, "compress", tmp_path / "a.pt", "--to", "safetensors", "-o", tmp_path / "d.safetensors")
    run(capsys, "compress", tmp_path / "d.safetensors", "--masks", "from-zeros", "-o", tmp_path / "z.safetensors")
    run(capsys, "compress", tmp_path / "a.pt", "--to", "prune", "-o", tmp_path / "n.pt")
    for name in ("a.pt", "p.safetensors", "u.pt", "h.safetensors", "d.safetensors", "z.safetensors", "n.pt"):
        found = load(tmp_path / name)
        assert set(found.state) == set(state), name
        for key in state if name != "h.safetensors" else ():
            assert torch.equal(found.state[key], state[key]), (name, key)
        for first, other in PAIRS:
            assert found.state[first].data_ptr() == found.state[other].data_ptr(), name
        assert len(ties_of(found.state)) == 2, name
        assert inspect(capsys, tmp_path / name)["total"]["bytes_dense"] == 4 * PARAMETERS, name
    # As other tools read them.
    net = network(Tied)
    assert safetensors.torch.load_model(net, tmp_path / "d.safetensors") == (set(), [])
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    pruned = network(Tied)
    for module in (pruned.stem, pruned.z, pruned.b, pruned.up, pruned.down, pruned.fc):
        prune.identity(module, "weight")
    pruned.load_state_dict(torch.load(tmp_path / "n.pt", weights_only=True))
    assert torch.equal(pruned(torch.ones(1, 3, 9, 9)), net(torch.ones(1, 3, 9, 9)))


def test_a_packed_file_says_ties_as_the_format_says(tmp_path: Path) -> None:
    state = halved(network().state_dict())
    packed = pack(tmp_path / "p.safetensors", state=state, masks=masks_of(state), meta={})
    assert len(packed.tensors) == 10 and packed.dense_bytes == 4 * PARAMETERS
    tensors, _, about = packed_reader.read((tmp_path / "p.safetensors").read_bytes())
    assert list(tensors) == list(state)
    assert all(tensors[key][2] == state[key].contiguous().numpy().tobytes() for key in state)
    assert json.loads(about["ties"])["b.weight"] == {"is": "z.weight", "at": list(state).index("b.weight")}
    assert list(load_state(tmp_path / "p.safetensors")) == list(state)
    untied = {k: t.clone() for k, t in state.items()}
    pack(tmp_path / "q.safetensors", state=untied, masks=None, meta={})
    assert "ties" not in packed_reader.read((tmp_path / "q.safetensors").read_bytes())[2]


def test_two_masks_of_one_tensor_must_be_equal(tmp_path: Path, capsys: Capture) -> None:
    state = halved(network().state_dict())
    mask = state["z.weight"] != 0
    save(tmp_path / "a.pt", state=state, masks={"z.weight": mask, "b.weight": mask.clone()}, meta={})
    assert list(load(tmp_path / "a.pt").masks or {}) == ["z.weight"]
    other = torch.ones_like(mask)
    with pytest.raises(Mismatch, match=r"z\.weight and b\.weight are one tensor"):
        save(tmp_path / "b.pt", state=state, masks={"z.weight": mask, "b.weight": other}, meta={})
    # A file by somebody else: masks for both names, written as our format asks.
    apart = {k: t.clone() for k, t in state.items()}
    save(tmp_path / "c.pt", state=apart, masks={"z.weight": mask, "b.weight": other}, meta={})
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    content["model"] = state
    torch.save(content, tmp_path / "c.pt")
    assert main(["prune-mask", str(tmp_path / "c.pt"), "--target", "0.6"]) == 3
    assert "z.weight and b.weight are one tensor" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "c.pt"), "--json", "--strict"]) == 3
    assert json.loads(capsys.readouterr().out)["masks"]["consistent"] is False


def test_a_mask_goes_by_the_layer_whatever_name_it_came_under(tmp_path: Path, capsys: Capture) -> None:
    state = halved(network().state_dict())
    save(tmp_path / "a.pt", state=state, masks={"b.weight": state["z.weight"] != 0}, meta={})
    run(capsys, "prune-mask", tmp_path / "a.pt", "--only", "fc", "--target", 0.5, "-o", tmp_path / "b.pt", *spec())
    masks = load(tmp_path / "b.pt").masks or {}
    assert {"z.weight", "fc.weight"} <= masks.keys() and "b.weight" not in masks


def test_values_that_differ_under_a_tie_are_not_dropped(tmp_path: Path, capsys: Capture) -> None:
    state = {key: tensor.clone() for key, tensor in network().state_dict().items()}
    state["b.weight"] += 1
    torch.save(state, tmp_path / "a.pt")
    said = inspect(capsys, tmp_path / "a.pt", *spec())
    assert said["total"]["prunable"] == PRUNABLE + 576 and said["total"]["parameters"] == PARAMETERS + 576
    assert any("z.weight and b.weight" in note and "differ" in note for note in said["notes"])
    run(capsys, "prune-mask", tmp_path / "a.pt", "--target", 0.5, "-o", tmp_path / "b.pt", *spec())
    found = load(tmp_path / "b.pt").state
    live = found["b.weight"] != 0
    assert torch.equal(found["b.weight"][live], state["b.weight"][live])
    for arguments in (
        ["prune-mask", "--target", "0.5", "--shrink", "-o", str(tmp_path / "c.pt")],
        ["compress", "--to", "onnx", "--mean", "0", "--std", "1"],
    ):
        assert main([arguments[0], str(tmp_path / "a.pt"), *arguments[1:], *spec()]) == 1
        assert "one would be lost" in capsys.readouterr().err
    assert not (tmp_path / "c.pt").exists()


def test_a_transposed_name_that_was_left_out_is_given_back_by_the_model(tmp_path: Path) -> None:
    net = network(Transposed)
    whole = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    kept = {key: tensor for key, tensor in whole.items() if key not in ("b.weight", "down.weight")}
    state, apart = tie_as(network(Transposed).state_dict(), kept)
    assert not apart
    assert all(torch.equal(state[key], tensor) for key, tensor in whole.items())
    assert tie_as(network(Transposed).state_dict(), whole)[1] == []
    wrong = whole | {"down.weight": whole["up.weight"]}
    (pair,) = tie_as(network(Transposed).state_dict(), wrong)[1]
    assert set(pair) == {"up.weight", "down.weight"}


def test_masks_beside_a_tied_weight_fold_to_one_mask_if_they_are_equal(tmp_path: Path) -> None:
    net = network(Tied)
    mask = torch.rand(8, 8, 3, 3) > 0.5
    for module in (net.z, net.b):
        prune.custom_from_mask(module, "weight", mask)
    net.b.weight_orig = net.z.weight_orig
    torch.save(net.state_dict(), tmp_path / "a.pt")
    found = load(tmp_path / "a.pt")
    assert list(found.masks or {}) == ["z.weight"] and ties_of(found.state)["b.weight"] == "z.weight"
    net.b.weight_mask = ~mask
    torch.save(net.state_dict(), tmp_path / "b.pt")
    found = load(tmp_path / "b.pt")
    assert torch.equal(found.state["b.weight"] != 0, ~mask) and torch.equal(found.state["z.weight"] != 0, mask)
    assert any("different masks" in note for note in found.notes)


@pytest.mark.parametrize("kind", [Tied, Apart, Embedded])
@pytest.mark.parametrize("images", [1, 5])
def test_sparse_execution_of_tied_layers(kind: type[nn.Module], images: int) -> None:
    pytest.importorskip("llvmlite")
    net = network(kind)
    masks = {"b.weight": torch.rand(8, 8, 3, 3) > 0.5, "fc.weight": torch.rand(10, 8) > 0.5}
    pixels = torch.randn(images, 3, 9, 9)
    found = sparsify(net, masks)(pixels)
    with torch.no_grad():
        net.z.weight.mul_(masks["b.weight"])
        net.fc.weight.mul_(masks["fc.weight"])
        torch.testing.assert_close(found, net(pixels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Tied, Apart, Transposed])
def test_a_tied_layer_is_not_cut_on_one_side(kind: type[nn.Module]) -> None:
    net = network(kind)
    with torch.no_grad():
        net.z.weight[2] = 0
        net.up.weight[3] = 0
        net.up.weight[:, 5] = 0
    masks = {f"{name}.weight": getattr(net, name).weight.ne(0) for name in ("z", "up")}
    report = shrink(net, masks, example=torch.zeros(1, 3, 9, 9))
    pixels = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(report.model.eval()(pixels), net(pixels))
    assert report.model.z.weight.shape == report.model.b.weight.shape


@pytest.mark.parametrize("kind", [Tied, Apart, Embedded])
def test_training_keeps_a_tie_and_one_mask(
    kind: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.pt", state=(state := halved(network(kind).state_dict())), masks=masks_of(state), meta={})
    options = [
        "--target",
        "0.7",
        "--epochs",
        "1",
        "--limit-train",
        "128",
        "--ema",
        "0.9",
        "--workers",
        "0",
        *spec(kind),
    ]
    run(capsys, "train", "--init", tmp_path / "a.pt", *options, "--max-steps", 1, "--name", "a")
    run(capsys, "train", "--resume", tmp_path / "runs" / "a", *spec(kind))
    for part in ("model", "raw"):
        one_tensor(torch.load(tmp_path / "runs" / "a" / "last.pt", weights_only=True)[part])
    found = load(tmp_path / "runs" / "a" / "last.pt", training=True)
    assert len(found.training["optimizer"]["state"]) == 10
    assert {"z.weight", "up.weight"} <= set(found.masks or {}) and not {"b.weight", "down.weight"} & set(found.masks)
    dead = state["z.weight"] == 0
    assert not found.state["b.weight"][dead].any() and not found.training["raw"]["b.weight"][dead].any()
    assert int((found.state["b.weight"] == 0).sum()) > int(dead.sum())


def test_an_untied_model_takes_the_file_of_a_tied_one(tmp_path: Path, capsys: Capture) -> None:
    save(tmp_path / "a.pt", state=(state := halved(network().state_dict())), masks=masks_of(state), meta={})
    run(capsys, "compress", tmp_path / "a.pt", "-o", tmp_path / "p.safetensors")
    run(capsys, "compress", tmp_path / "a.pt", "--to", "safetensors", "-o", tmp_path / "d.safetensors")
    said = inspect(capsys, tmp_path / "a.pt", tmp_path / "d.safetensors")  # whose names are sorted
    assert said["unmatched"] == [] and said["total"]["mask_iou"] == 1
    said = inspect(capsys, tmp_path / "a.pt", tmp_path / "p.safetensors", *spec(Untied))
    assert said["total"]["mask_iou"] == 1 and said["total"]["same_weights"] is True


def test_a_damaged_record_of_ties_is_found(tmp_path: Path) -> None:
    for ties in (
        '{"b": {"is": "c", "at": 1}}',
        '{"a": {"is": "a", "at": 1}}',
        '{"b": {"is": "a", "at": 7}}',
        "[]",
        '{"b": 1}',
    ):
        metadata = {"layers": "{}", "plain_crc32": "ffffffff", "masks_digest": "", "meta": "{}", "ties": ties}
        entry = Entry(name="a", dtype="F32", shape=(0,), data=b"")
        with open(tmp_path / "x.safetensors", "wb") as file:
            write(file, [entry], metadata)
        with pytest.raises(StarfireError, match="damaged: its ties"):
            load_state(tmp_path / "x.safetensors")
