"""Weights are found in a file whatever lies around them, and errors speak the caller's language."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import starfire_cli
from starfire_cli.cli import main
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.formats.checkpoint.unwrap import unwrap
from starfire_cli.networks.tensor_names import match_names
from tests import tiny

Capture = pytest.CaptureFixture[str]
State = dict[str, Tensor]
SPEC = "tests.tiny:net"
KNOWN: dict[str, Any] = {"model": SPEC, "num_classes": 3, "mean": (0, 0, 0), "std": (1, 1, 1)}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return tiny.net(3).eval()


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def inside(name: str, state: State) -> State:
    return {key.replace(".", f".{name}.", 1): value for key, value in state.items()}


OTHERS = {"loss.weight": torch.ones(3), "metric.confusion": torch.ones(3, 3)}
AROUND: dict[str, tuple[Callable[[State], Any], str]] = {
    "net.": (lambda s: under("net.", s), "prefix 'net.' stripped"),
    "backbone.": (lambda s: {"state_dict": under("backbone.", s)}, "prefix 'backbone.' stripped"),
    "two levels": (lambda s: under("learner.model.", s), "prefix 'learner.model.' stripped"),
    "of DataParallel below": (lambda s: under("net.module.", s), "prefix 'net.module.' stripped"),
    "of FSDP": (lambda s: under("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", s)), "_fsdp_wrapped_module."),
    "of checkpoint wrappers": (lambda s: inside("_checkpoint_wrapped_module", s), "_checkpoint_wrapped_module."),
    "of DataParallel inside": (lambda s: under("model.", inside("module", s)), "'module.' stripped inside keys"),
    "beside other modules": (lambda s: {**under("model.", s), **OTHERS}, "left out, since they are not under 'model.'"),
    "of Lightning": (
        lambda s: {"pytorch-lightning_version": "2.5", "state_dict": under("model.", s), "epoch": 3},
        "prefix 'model.' stripped",
    ),
}


@pytest.mark.parametrize("around", AROUND)
def test_a_prefix_that_fits_the_model_is_stripped(tmp_path: Path, capsys: Capture, around: str) -> None:
    model, images = net(), torch.rand(2, 3, 12, 12)
    wrap, note = AROUND[around]
    torch.save(wrap(dict(model.state_dict())), tmp_path / "a.pt")
    with torch.no_grad():
        assert torch.equal(starfire_cli.load_model(tmp_path / "a.pt", **KNOWN)(images), model(images))
    arguments = [str(tmp_path / "a.pt"), "--model", SPEC]
    assert main(["inspect", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any(note in line for line in found["notes"])
    assert [layer["name"] for layer in found["layers"]] == ["conv1", "conv2", "point", "fc"]
    assert main(["prune-mask", *arguments, "--target", "0.5", "-o", str(tmp_path / "b.pt")]) == 0
    assert note in capsys.readouterr().out
    pruned = load(tmp_path / "b.pt")
    assert pruned.state.keys() == model.state_dict().keys()
    assert pruned.masks is not None and pruned.masks.keys() == {
        f"{name}.weight" for name in ("conv1", "conv2", "point", "fc")
    }


def test_without_a_model_only_what_wraps_from_outside_is_stripped(tmp_path: Path) -> None:
    state = dict(net().state_dict())
    torch.save(under("_fsdp_wrapped_module.", inside("_orig_mod", state)), tmp_path / "a.pt")
    torch.save(under("model.", state), tmp_path / "b.pt")
    assert load(tmp_path / "a.pt").state.keys() == state.keys()
    assert load(tmp_path / "b.pt").state.keys() == under("model.", state).keys(), "it may be the user's own module"


def test_a_prefix_that_the_file_lacks_and_two_that_fit(tmp_path: Path) -> None:
    model = net()
    state = dict(model.state_dict())
    torch.save({key.removeprefix("net."): value for key, value in state.items()}, tmp_path / "a.pt")
    torch.save({**under("student.", state), **under("teacher.", state)}, tmp_path / "b.pt")
    with pytest.raises(StarfireError, match=r"several such networks, under 'student.', 'teacher.'; weights='student'"):
        starfire_cli.load_model(tmp_path / "b.pt", **KNOWN)
    found = starfire_cli.load(tmp_path / "b.pt", weights="teacher")
    assert found.keys() == state.keys()


def averaged(model: nn.Module) -> State:
    return dict(AveragedModel(model).state_dict())


def plus(state: State) -> State:
    return {key: value + 1 for key, value in state.items()}


AVERAGES: dict[str, Callable[[State], Any]] = {
    "timm": lambda s: {"state_dict": s, "state_dict_ema": plus(s), "epoch": 2},
    "torchvision": lambda s: {
        "model": s,
        "model_ema": {"n_averaged": torch.tensor(3), **under("module.", plus(s))},
        "epoch": 2,
    },
    "short": lambda s: {"model": s, "ema": plus(s)},
    "a class of its own": lambda s: {"model": s, "ema": {"decay": 0.9, "shadow": plus(s)}},
    "Lightning's WeightAveraging": lambda s: {
        "pytorch-lightning_version": "2.6",
        "state_dict": under("net.", plus(s)),
        "current_model_state": under("net.", s),
        "averaging_state": {"n_averaged": torch.tensor(2)},
    },
    "a Lightning callback": lambda s: {
        "pytorch-lightning_version": "2.1",
        "state_dict": under("net.", s),
        "callbacks": {"EMACallback": {"decay": 0.99, "ema_state_dict": under("net.", plus(s))}},
    },
    "side by side": lambda s: {"state_dict": {**s, **under("ema_model.module.", plus(s))}},
    "side by side, both prefixed": lambda s: {**under("model.", s), **under("model_ema.", plus(s))},
    "without dots": lambda s: {
        **under("model.", s),
        **{f"model_ema.{key.replace('.', '')}": value + 1 for key, value in s.items()},
    },
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_weights_chooses_between_trained_and_averaged(tmp_path: Path, capsys: Capture, kind: str) -> None:
    state = dict(net().state_dict())
    torch.save(AVERAGES[kind](state), tmp_path / "a.pt")

    def weight(path: Path, **options: Any) -> Tensor:
        return starfire_cli.load_model(path, **KNOWN, **options).get_parameter("net.conv1.weight")

    raw, average = state["conv1.weight"], state["conv1.weight"] + 1
    assert torch.equal(weight(tmp_path / "a.pt"), raw)
    assert torch.equal(weight(tmp_path / "a.pt", weights="model"), raw)
    assert torch.equal(weight(tmp_path / "a.pt", weights="ema"), average)
    assert main(["prune-mask", str(tmp_path / "a.pt"), "--weights", "ema", "--model", SPEC, "--target", "0.5"]) == 0
    capsys.readouterr()
    pruned = load(tmp_path / "a-window-0.5.pt")
    assert pruned.masks is not None
    assert torch.equal(pruned.state["conv1.weight"], average * pruned.masks["conv1.weight"])
    if "callback" not in kind:
        assert main(["inspect", str(tmp_path / "a.pt")]) == 0
        text = capsys.readouterr().out
        assert ("--weights ema" if "Averaging" not in kind else "current_model_state") in text


def test_a_layer_that_is_called_ema_is_no_average(tmp_path: Path) -> None:
    state = {"conv.weight": torch.ones(3, 3, 3, 3), "ema.weight": torch.ones(3, 3, 1, 1), "ema.bias": torch.ones(3)}
    torch.save(state, tmp_path / "a.pt")
    assert load(tmp_path / "a.pt").state.keys() == state.keys()


def test_weights_that_are_not_there(tmp_path: Path, capsys: Capture) -> None:
    state = dict(net().state_dict())
    torch.save({"state_dict": state, "model_ema": plus(state)}, tmp_path / "both.pt")
    torch.save(averaged(net()), tmp_path / "average.pt")
    torch.save(state, tmp_path / "bare.pt")
    save(tmp_path / "own.pt", state=state, masks=None, meta={})
    for path, weights, says in (
        ("bare.pt", "ema", "holds no average of its weights"),
        ("own.pt", "ema", "holds model only"),
        ("both.pt", "teacher", "holds nothing of that name; it has state_dict, model_ema"),
        ("average.pt", "model", "holds only an average"),
    ):
        with pytest.raises(BadOption, match=f"--weights {weights}: .*{says}"):
            load(tmp_path / path, weights=weights)
        assert main(["inspect", str(tmp_path / path), "--weights", weights]) == 2
        assert says in capsys.readouterr().err
    for path, weights in (("bare.pt", "model"), ("own.pt", "model"), ("average.pt", "ema"), ("both.pt", "model_ema")):
        assert load(tmp_path / path, weights=weights).state.keys() == state.keys()


def test_our_own_average(tmp_path: Path) -> None:
    state = dict(net().state_dict())
    save(tmp_path / "a.pt", state=plus(state), masks=None, meta={"request": {"ema": 0.9}}, training={"raw": state})
    assert torch.equal(load(tmp_path / "a.pt").state["fc.bias"], state["fc.bias"] + 1)
    assert torch.equal(load(tmp_path / "a.pt", weights="ema").state["fc.bias"], state["fc.bias"] + 1)
    assert torch.equal(load(tmp_path / "a.pt", weights="model").state["fc.bias"], state["fc.bias"])


def test_one_wording_for_all_that_does_not_fit(tmp_path: Path, capsys: Capture) -> None:
    state = dict(net().state_dict())
    state["conv2.weight"] = torch.ones(12, 8, 1, 1)  # beside a classifier for 3 classes, which is told from it
    torch.save(state, tmp_path / "a.pt")
    expected = (
        f"error: {tmp_path / 'a.pt'} does not fit --model {SPEC}: conv2.weight is (12, 8, 1, 1) in the file, "
        "(12, 8, 3, 3) in the model\n"
    )
    trained = ("--epochs", "1", "--out", str(tmp_path), "--image-size", "16")
    for command in (
        ["inspect", str(tmp_path / "a.pt"), "--model", SPEC],
        ["prune-mask", str(tmp_path / "a.pt"), "--model", SPEC, "--target", "0.5"],
        ["train", "--init", str(tmp_path / "a.pt"), "--model", SPEC, *trained],
    ):
        assert main(command) == 1
        assert capsys.readouterr().err.endswith(expected)


def failing_calls() -> dict[str, dict[str, Any]]:
    return {
        "no model": {"mean": (0, 0, 0), "std": (1, 1, 1)},
        "another model": {**KNOWN, "model": "resnet20"},
        "no mean": {"model": SPEC, "num_classes": 3},
        "no std": {"model": SPEC, "num_classes": 3, "mean": (0, 0, 0)},
        "other classes": {**KNOWN, "num_classes": 5},
        "no such device": {**KNOWN, "device": "tpu9"},
        "no such weights": {**KNOWN, "weights": "ema"},
        "unknown model": {**KNOWN, "model": "resnet2"},
    }


@pytest.mark.parametrize("case", failing_calls())
def test_errors_of_load_model_name_its_arguments(tmp_path: Path, case: str) -> None:
    torch.save(dict(net().state_dict()), tmp_path / "a.pt")
    with pytest.raises(StarfireError) as caught:
        starfire_cli.load_model(tmp_path / "a.pt", **failing_calls()[case])
    assert "--" not in str(caught.value)
    named = [word.partition("=")[0].strip("(") for word in str(caught.value).split() if "=" in word]
    assert set(named) <= set(inspect.signature(starfire_cli.load_model).parameters)
    with pytest.raises(StarfireError, match="--weights ema"):  # and elsewhere those of the command line
        load(tmp_path / "a.pt", weights="ema")


def test_code_that_a_file_names_is_offered_as_an_argument(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", state=net().state_dict(), masks=None, meta={"model": {"spec": "some.module:net"}})
    with pytest.raises(BadOption, match=r"not run unasked; model='some\.module:net' runs it"):
        starfire_cli.load_model(tmp_path / "a.pt", mean=(0, 0, 0), std=(1, 1, 1))


def test_a_key_called_digest_contradicts_nothing(tmp_path: Path, capsys: Capture) -> None:
    state = {"conv.weight": torch.ones(4, 3, 3, 3), "digest": "abc", "digest.extra": [1]}
    for name, content in (("a.pt", state), ("b.pt", {"digest": {"conv.weight": torch.ones(4, 3, 3, 3)}})):
        torch.save(content, tmp_path / name)
        assert main(["inspect", "--json", "--strict", str(tmp_path / name)]) == 0
        found = json.loads(capsys.readouterr().out)["masks"]
        assert found["consistent"] is True and found["digest_matches"] is True


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_names_that_are_not_utf8(tmp_path: Path, capsys: Capture) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    state = dict(net().state_dict())
    torch.save(state, tmp_path / "a.pt")
    os.rename(tmp_path / "a.pt", folder / "a.pt")
    save_file(state, tmp_path / "b.safetensors")
    os.rename(tmp_path / "b.safetensors", folder / "b.safetensors")
    for name in ("a.pt", "b.safetensors"):
        found = load(folder / name).state
        assert all(torch.equal(found[key], value) for key, value in state.items())
    pruned = folder / os.fsdecode(b"\xff.pt")
    for command in (
        ["inspect", str(folder / "a.pt"), str(folder / "b.safetensors")],
        ["prune-mask", str(folder / "a.pt"), "--target", "0.5", "-o", str(pruned)],
        ["compress", str(pruned)],
        ["compress", "--unpack", str(pruned.with_suffix(".safetensors"))],
        ["compress", str(pruned), "--to", "safetensors"],
        ["inspect", "--json", str(pruned)],
    ):
        assert main(command) == 0, capsys.readouterr().err
    assert load(pruned).meta.values["source"]["path"] == str(folder / "a.pt")


def test_a_prefix_that_a_head_beside_it_does_not_have(tmp_path: Path) -> None:
    plain = tiny.Net(10).state_dict()
    head = [key for key in plain if key.startswith("fc")]
    assert head and len(head) < len(plain)
    mixed = {key if key in head else f"backbone.{key}": tensor for key, tensor in plain.items()}
    torch.save(mixed, tmp_path / "a.pt")
    found = match_names(tiny.Net(10), load(tmp_path / "a.pt"))
    assert all(torch.equal(found.state[key], tensor) for key, tensor in plain.items())
    assert any("prefix 'backbone.' stripped" in note for note in found.notes)


def test_a_scalar_of_an_average_comes_along() -> None:
    plain = tiny.Net(10).state_dict()
    both = {f"net.{k}": v for k, v in plain.items()} | {f"ema_net.{k}": v * 2 for k, v in plain.items()}
    state, _ = unwrap({"state_dict": both, "ema_net.decay": 0.9}, Path("a.pt"), "ema")
    assert any(not tensor.ndim for tensor in plain.values())
    assert {key.removeprefix("net.") for key in state} == plain.keys()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mean": (1, 2)}, "mean=(1, 2) is not three numbers from 0 to 1"),
        ({"std": (0, 1, 1)}, "std=(0, 1, 1) is not three numbers above 0"),
        ({"std": 0}, "std=0 is not three numbers"),
        ({"num_classes": "x"}, "num_classes='x' is no whole number of 1 or more"),
        ({"model": nn.ReLU()}, "model is a ReLU; its name works"),
    ],
)
def test_arguments_of_load_model_are_read_before_torch_reads_them(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadOption, match=re.escape(words)):
        starfire_cli.load_model("no such file", **given)
