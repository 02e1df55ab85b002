"""`starfire compress`, from the command line: what is written, what is said, what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import starfire_cli
from starfire_cli.cli import main
from starfire_cli.formats.checkpoint import file as checkpoint
from starfire_cli.formats.packed.read import PackedFile
from starfire_cli.formats.run import Run
from tests.helpers.packed_strategies import same_bits
from tests.tiny import net

META = {
    "model": {"spec": "tests.tiny:net", "num_classes": 10, "image_size": 16},
    "data": {"name": "digits", "spec": "digits", "classes": [str(i) for i in range(10)], "mean": [0.3] * 3}
    | {"std": [0.3] * 3, "image_size": 16, "val_fraction": 0.2, "split_seed": 0, "stored": 16},
}
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `starfire ...` in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def pruned_state() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    state = {key: value.clone() for key, value in net(10).state_dict().items()}
    masks = {}
    for key in ("conv1.weight", "conv2.weight", "point.weight", "fc.weight"):
        masks[key] = torch.rand(state[key].shape) < 0.4
        state[key].masked_fill_(~masks[key], 0)
    return state, masks


def write(path: Path, meta: dict[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state, masks = pruned_state()
    checkpoint.save(path, state=state, masks=masks, meta=META if meta is None else meta)
    return state, masks


def test_nothing_given_packs_the_newest_run_and_it_loads_everywhere(cli: Cli, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs", "one", "x")
    run.write_config({})
    state, masks = write(run.best)
    code, out, _ = cli("compress")
    packed = run.path / "best.safetensors"
    assert code == 0 and packed.is_file()
    line = next(line for line in out.splitlines() if line.startswith("packed "))
    found = re.fullmatch(r"packed ([\d,]+) bytes = (\d+\.\d\d) of the bound, (\d+\.\d) times smaller than dense", line)
    assert found and int(found[1].replace(",", "")) == packed.stat().st_size
    assert all(name in out for name in ("conv1", "conv2", "point", "fc", "tensors never pruned"))
    assert all(same_bits(value, state[key]) for key, value in starfire_cli.load(packed).items())
    fresh = net(10)
    fresh.load_state_dict(starfire_cli.load(packed))
    model = starfire_cli.load_model(packed, model=META["model"]["spec"])
    assert not model.training and not any(p.requires_grad is False for p in model.parameters())
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(pixels), fresh.eval()((pixels - 0.3) / 0.3))

    code, out, _ = cli("compress", "--unpack", packed)
    assert code == 0
    back = checkpoint.load(run.path / "best.unpacked.pt")
    assert back.meta.values == META and back.masks is not None and back.masks.keys() == masks.keys()
    assert all(torch.equal(back.masks[key], mask) for key, mask in masks.items())
    assert all(same_bits(back.state[key], value) for key, value in state.items())
    assert starfire_cli.load(run.path).keys() == state.keys()


def test_json_holds_the_sizes(cli: Cli, tmp_path: Path) -> None:
    state, masks = write(tmp_path / "a.pt")
    code, out, _ = cli("compress", "a.pt", "--json", "--out", "b.safetensors")
    result = json.loads(out)
    keys = {"input", "output", "dense_bytes", "packed_bytes", "bound_bytes", "ratio_to_bound", "layers", "seconds"}
    assert code == 0 and keys <= result.keys()
    assert result["packed_bytes"] == (tmp_path / "b.safetensors").stat().st_size
    assert result["dense_bytes"] == sum(t.nbytes for t in state.values())
    assert result["ratio_to_bound"] == pytest.approx(result["packed_bytes"] / result["bound_bytes"], rel=1e-3)
    assert {layer["name"]: layer["live"] for layer in result["layers"]} == {k: int(m.sum()) for k, m in masks.items()}
    inside = sum(layer["packed_bytes"] for layer in result["layers"]) + result["plain"]["bytes"]
    assert inside + result["header_bytes"] == result["packed_bytes"]


def test_the_bound_is_what_an_independent_count_gives(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weight = torch.randn(64, 32, 3, 3)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for c in range(32):  # ck: 20 of 64 kernels of each input channel
        mask[torch.randperm(64)[:20], c] = True
    weight[~mask] = 0
    checkpoint.save(tmp_path / "a.pt", state={"w": weight, "b": torch.ones(7)}, masks={"w": mask}, meta={})
    _, out, _ = cli("compress", "a.pt", "--json")
    exponents = weight[mask].numpy().view(np.uint32) >> 23 & 255
    p = np.unique(exponents, return_counts=True)[1] / exponents.size
    bits = -(p * np.log2(p)).sum() * exponents.size + 24 * exponents.size
    ways = sum(np.log2((64 - i) / (i + 1)) for i in range(20)) * 32
    assert json.loads(out)["bound_bytes"] == pytest.approx((bits + ways) / 8 + 7 * 3, abs=1)


def test_onnx_of_a_foreign_file_wants_what_it_does_not_say(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    torch.save(net(7).state_dict(), tmp_path / "f.pt")
    code, _, err = cli("compress", "f.pt", "--to", "onnx")
    assert code == 2 and "does not say which model it is; give it: --model" in err
    code, _, err = cli("compress", "f.pt", "--to", "onnx", "--model", "tests.tiny:net", "--mean", "0.5")
    assert code == 2 and "give --std" in err
    options = ("--model", "tests.tiny:net", "--mean", "0.5", "--std", "0.2,0.2,0.3")
    code, _, err = cli("compress", "f.pt", "--to", "onnx", *options)
    assert code == 0 and (tmp_path / "f.onnx").is_file()
    code, _, err = cli("compress", "f.pt", *options)
    assert code == 2 and "--mean and --std are for --to onnx" in err
    code, _, err = cli("compress", "f.pt", "--to", "onnx", "--model", "tests.tiny:net", "--mean", "76", "--std", "1")
    assert code == 2 and "pixels are in [0, 1]" in err


def test_rounding_says_what_it_costs(cli: Cli, tmp_path: Path) -> None:
    state, masks = pruned_state()
    place = tuple(masks["fc.weight"].nonzero()[0])
    state["fc.weight"][place] = 1e-9
    checkpoint.save(tmp_path / "a.pt", state=state, masks=masks, meta=META)
    code, out, _ = cli("compress", "a.pt", "--values", "fp16", "--images", 40, "--model", META["model"]["spec"])
    live = sum(int(mask.sum()) for mask in masks.values())
    found = re.search(rf"{live:,} values rounded to fp16: off by (\S+) at most, (\S+) on average; 1 live weights", out)
    assert code == 0 and found
    back = checkpoint.load(tmp_path / "a.safetensors")
    errors = torch.cat([(back.state[k] - state[k]).abs()[m] for k, m in masks.items()])
    assert float(found[1]) == pytest.approx(float(errors.max()), rel=0.01)
    assert float(found[2]) == pytest.approx(float(errors.mean()), rel=0.01)
    assert re.search(r"top-1 \d+\.\d\d% before, \d+\.\d\d% after, on 40 images of digits", out)
    for key, value in state.items():
        expected = value.half().float() if key in masks else value
        assert same_bits(back.state[key], expected)
    assert back.masks is not None and back.masks["fc.weight"][place] and back.state["fc.weight"][place] == 0

    state["fc.weight"][place] = 1e5
    checkpoint.save(tmp_path / "b.pt", state=state, masks=masks, meta={})
    code, _, err = cli("compress", "b.pt", "--values", "fp16")
    assert code == 1 and "1 values of fc.weight are beyond 65504; bf16 reaches further" in err
    code, out, _ = cli("compress", "b.pt", "--values", "bf16")
    assert code == 0 and "none became zero" in out and "accuracy before and after was not measured" in out


def test_a_codebook_is_small_and_says_what_it_costs(cli: Cli, tmp_path: Path) -> None:
    state, masks = write(tmp_path / "a.pt")
    options = ("--values", "codebook:bits=3,init=density,noise=0", "--images", 40, "--model", META["model"]["spec"])
    code, out, _ = cli("compress", "a.pt", *options, "--json")
    result = json.loads(out)
    back = checkpoint.load(tmp_path / "a.safetensors")
    assert code == 0 and back.masks is not None and back.masks.keys() == masks.keys()
    assert all(same_bits(back.state[key], value) for key, value in state.items() if key not in masks)
    assert all(len(back.state[key][mask].unique()) == 8 for key, mask in masks.items())
    errors = torch.cat([(back.state[key] - state[key]).abs()[mask] for key, mask in masks.items()])
    assert result["rounding"]["max_error"] == float(errors.max()) and result["rounding"]["count"] == len(errors)
    assert {layer["name"]: layer["codebook"] for layer in result["layers"]} == dict.fromkeys(masks, 8)
    code, out, _ = cli("compress", "a.safetensors", *options, "--out", "b.safetensors")
    assert code == 0 and (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    said = (
        f"{len(errors):,} values replaced by shared ones (codebook:bits=3,init=density,noise=0.0): off by 0 at most, "
        "0 on average"
    )
    assert said in out and re.search(r"conv2 .*, 8 values ", out)
    assert re.search(r"top-1 (\d+\.\d\d)% before, \1% after, on 40 images of digits", out)
    # Of the same checkpoint, all commands see the values that came back.
    assert cli("compress", "--unpack", "b.safetensors")[0] == 0
    plain = checkpoint.load(tmp_path / "b.unpacked.pt").state
    assert all(same_bits(value, plain[key]) for key, value in back.state.items())


def test_inconsistent_masks_are_refused_and_from_zeros_overrides(cli: Cli, tmp_path: Path) -> None:
    state, masks = pruned_state()
    checkpoint.save(tmp_path / "a.pt", state=state, masks=masks, meta={})
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    dead = tuple((~masks["fc.weight"]).nonzero()[0])
    content["model"]["fc.weight"][dead] = 0.5
    torch.save(content, tmp_path / "b.pt")
    code, _, err = cli("compress", "b.pt")
    assert code != 0 and "fc.weight has 1 dead weights" in err and "--masks from-zeros" in err
    assert not (tmp_path / "b.safetensors").exists()
    code, _, _ = cli("compress", "b.pt", "--masks", "from-zeros")
    back = checkpoint.load(tmp_path / "b.safetensors")
    assert (
        code == 0 and back.masks is not None and back.masks["fc.weight"][dead] and back.state["fc.weight"][dead] == 0.5
    )


def test_without_masks_it_says_so_and_loses_nothing(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = {"w": torch.randn(300, 200), "b": torch.randn(300)}
    torch.save(dense, tmp_path / "dense.pt")
    code, out, _ = cli("compress", "dense.pt")
    assert code == 0 and "has no masks and no zeros: nothing is pruned" in out
    assert all(same_bits(value, dense[key]) for key, value in starfire_cli.load(tmp_path / "dense.safetensors").items())

    holes = torch.randn(300, 200) * (torch.rand(300, 200) < 0.25)  # a product: half of its zeros are -0.0
    torch.save({"w": holes}, tmp_path / "holes.pt")
    code, out, _ = cli("compress", "holes.pt")
    zeros = int((holes == 0).sum())
    assert code == 0 and f"has no masks; {zeros} of its 60000 weights are zero" in out
    back = checkpoint.load(tmp_path / "holes.safetensors")
    assert back.masks is None and same_bits(back.state["w"], holes)
    code, out, _ = cli("compress", "holes.pt", "--masks", "from-zeros")
    signs = int((holes.signbit() & (holes == 0)).sum())
    assert code == 0 and f"{signs} of the zeros were -0.0" in out and signs > 1000
    back = checkpoint.load(tmp_path / "holes.safetensors")
    assert back.masks is not None and torch.equal(back.masks["w"], holes != 0) and torch.equal(back.state["w"], holes)


def test_plain_readers_find_all_that_was_never_pruned(cli: Cli, tmp_path: Path) -> None:
    state, masks = pruned_state()
    state["head.weight"] = torch.randn(200, 300)
    checkpoint.save(tmp_path / "a.pt", state=state, masks=masks, meta={})
    cli("compress", "a.pt", "--keep-plain")
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors.keys() == {f"{key}.packed" if key in masks else key for key in state}
    assert all(same_bits(tensors[key], value) for key, value in state.items() if key not in masks)
    cli("compress", "a.pt")
    assert PackedFile(tmp_path / "a.safetensors").layers["head.weight"].encoding == "dense"


def test_safetensors_in_and_out(cli: Cli, tmp_path: Path) -> None:
    state, masks = write(tmp_path / "a.pt")
    code, out, _ = cli("compress", "a.pt", "--to", "safetensors")
    assert code == 0 and f"written as safetensors: {len(state)} tensors, " in out and "masks" not in out
    dense = load_file(tmp_path / "a.dense.safetensors")
    assert dense.keys() == state.keys() and all(same_bits(dense[key], value) for key, value in state.items())
    # A safetensors file packs to another name, and a packed file can be packed again.
    os.rename("a.dense.safetensors", "b.safetensors")
    code, _, _ = cli("compress", "b.safetensors", "--masks", "from-zeros")
    assert code == 0 and (tmp_path / "b.packed.safetensors").exists()
    before = (tmp_path / "b.packed.safetensors").read_bytes()
    code, _, _ = cli("compress", "b.packed.safetensors", "--out", "c.safetensors")
    assert code == 0 and (tmp_path / "c.safetensors").read_bytes() == before
    code, _, err = cli("compress", "b.packed.safetensors", "--out", "b.packed.safetensors")
    assert code == 2 and "is the checkpoint itself" in err
    code, _, err = cli("compress", "--unpack", "c.safetensors", "--out", "d.safetensors")
    assert code == 2 and "a .pt file is written" in err and not (tmp_path / "d.safetensors").exists()
    code, out, _ = cli("compress", "--unpack", "c.safetensors", "--out", "d.pth")
    assert code == 0 and f"{len(masks)} masks" in out
    code, _, err = cli("compress", "--unpack", "a.pt")
    assert code == 1 and "a.pt is not a packed file" in err
    back = checkpoint.load(tmp_path / "c.safetensors").masks
    assert back is not None and all(torch.equal(back[key], mask) for key, mask in masks.items())


def test_prune_keys_load_into_a_model_under_torch_prune(cli: Cli, tmp_path: Path) -> None:
    from torch.nn.utils import prune

    state, masks = write(tmp_path / "a.pt")
    assert cli("compress", "a.pt", "--to", "prune")[0] == 0
    model = net(10)
    for key in masks:
        prune.identity(model.get_submodule(key.removesuffix(".weight")), "weight")
    model.load_state_dict(torch.load(tmp_path / "a.prune.pt", weights_only=True))
    model.eval()(torch.rand(1, 3, 8, 8))  # its hooks multiply by the masks
    for key in masks:
        module = model.get_submodule(key.removesuffix(".weight"))
        assert torch.equal(torch.as_tensor(module.weight), state[key])
        prune.remove(module, "weight")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    # And we read it back, masks and all.
    back = checkpoint.load(tmp_path / "a.prune.pt")
    assert back.masks is not None and all(torch.equal(back.masks[key], mask) for key, mask in masks.items())


def test_bitmask_layout(cli: Cli, tmp_path: Path) -> None:
    state, masks = write(tmp_path / "a.pt")
    assert cli("compress", "a.pt", "--to", "bitmask")[0] == 0
    file = load_file(tmp_path / "a.bitmask.safetensors")
    for key, mask in masks.items():
        shape = tuple(file[f"{key}.shape"].tolist())
        # As compressed-tensors' sparse-bitmask compressor unpacks it.
        bits = np.unpackbits(file[f"{key}.bitmask"].numpy(), axis=-1, count=shape[-1], bitorder="little")
        dense = torch.zeros(shape)
        dense[torch.from_numpy(bits.reshape(shape).astype(bool))] = file[f"{key}.compressed"]
        assert shape == tuple(mask.shape) and same_bits(dense, state[key])
        kept = mask.reshape(shape[0], -1).sum(1)
        assert file[f"{key}.row_offsets"].tolist() == [int(kept[:row].sum()) for row in range(shape[0])]
    assert same_bits(file["fc.bias"], state["fc.bias"])


def test_options_that_make_no_sense(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "a.pt")
    for arguments, message in (
        (["--values", "int8"], "unknown --values 'int8'; there are: bf16, codebook, exact, fp16"),
        (["--values", "bf16:bits=5"], "--values bf16:bits=5: bf16 has no options; codebook has, as in codebook:bits=4"),
        (["--values", "codebook:bits=9"], "--values 'codebook:bits=9': bits=9 is out of range: 1 to 8"),
        (
            ["--values", "codebook:k=9"],
            "'k=9' is not an option of codebook; options: bits=..., conv_bits=..., fc_bits=",
        ),
        (["--to", "prune", "--values", "codebook"], "--values codebook is for packing; --to prune writes"),
        (["--effort", "11"], "unknown --effort '11'"),
        (["--masks", "guess"], "unknown --masks 'guess'"),
        (["--to", "zip"], "unknown --to 'zip'; there are: bitmask, onnx, prune, safetensors"),
        (["--to", "prune", "--unpack"], "exclude each other"),
        (["--data", "digits"], "--values"),
        (["--to", "onnx", "--values", "fp16"], "--values fp16 is for packing; --to onnx writes weights and masks as"),
        (["--to", "prune", "--masks", "from-zeros"], "--masks from-zeros is for packing"),
        (["--unpack", "--no-verify"], "--no-verify is for packing; --unpack writes"),
        (["--out", "b.pt"], "--out b.pt: a .safetensors file is written; give it that ending"),
        (["--to", "bitmask", "--out", "b.onnx"], "a .safetensors file is written"),
        (["--to", "prune", "--out", "b.safetensors"], "a .pt file is written"),
    ):
        code, _, err = cli("compress", "a.pt", *arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1
    (tmp_path / "a.safetensors").write_bytes(b"precious")
    code, _, err = cli("compress", "a.pt")
    assert code == 1 and "a.safetensors exists and is not a packed file" in err
    assert (tmp_path / "a.safetensors").read_bytes() == b"precious"
    code, _, err = cli("compress", "a.pt", "--values", "bf16", "--data", "nowhere", "--out", "z.safetensors")
    assert code == 2 and "nowhere" in err and not (tmp_path / "z.safetensors").exists()
    assert cli("compress", "missing.pt")[0] == 1


def test_load_model_says_what_it_lacks(cli: Cli, tmp_path: Path) -> None:
    state, masks = write(tmp_path / "a.pt", meta={})
    cli("compress", "a.pt")
    packed = tmp_path / "a.safetensors"
    with pytest.raises(starfire_cli.errors.StarfireError, match="does not say which model it is"):
        starfire_cli.load_model(packed)
    with pytest.raises(starfire_cli.errors.StarfireError, match=r"give mean=\.\.\. and std=\.\.\. \(ImageNet: mean="):
        starfire_cli.load_model(packed, model="tests.tiny:net")
    model = starfire_cli.load_model(
        packed, model="tests.tiny:net", num_classes=10, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
    )
    plain = net(10).eval()
    plain.load_state_dict(state)
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(model(pixels), plain((pixels - 0.5) / 0.2)) and masks


@pytest.mark.slow
def test_onnx_computes_the_same(cli: Cli, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write(tmp_path / "a.pt")
    code, out, _ = cli("compress", "a.pt", "--to", "onnx", "--model", "tests.tiny:net")
    assert code == 0 and "onnxruntime's logits differ by" in out
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    pixels = torch.rand(5, 3, 16, 16)
    (logits,) = session.run(None, {"pixels": pixels.numpy()})
    expected = starfire_cli.load_model(tmp_path / "a.pt", model="tests.tiny:net")(pixels)
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-5)
