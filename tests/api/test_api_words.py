"""Messages of the Python interface: arguments by their Python names, one line for what makes no sense."""

from __future__ import annotations

import re
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import starfire_cli as starfire
from starfire_cli.api._errors import in_python
from starfire_cli.errors import BadOption, StarfireError
from tests.workflows.attach.loops import made, trained

BATCH = [(torch.rand(4, 3, 7, 7), torch.tensor([0, 1, 2, 3]))]


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("--target 0.99 with --method ck", "target=0.99 with method='ck'"),
        ("exempt layers with --keep-dense", "exempt layers with keep_dense"),
        ("--masks from-zeros packs them", "masks='from-zeros' packs them"),
        ("(--masks from-zeros does)", "(masks='from-zeros' does)"),
        ("--out net.pt: a .safetensors", "path='net.pt': a .safetensors"),
        ("--out /a/b.pt is the checkpoint", "path='/a/b.pt' is the checkpoint"),
        ("give --out another name", "give path another name"),
        ("--layer 'x*' matches no layer", "layer='x*' matches no layer"),
        ("--kind tradeoff opens them", "kind='tradeoff' opens them"),
        ("--data gives it", "data gives it"),
        ("a pre-trained, well-known one", "a pre-trained, well-known one"),
    ],
)
def test_options_become_arguments(text, python):
    assert in_python(text, {"out": "path"}) == python


def wrong(call: Any) -> str:
    with pytest.raises(StarfireError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and not re.search(r"--[a-z]", text)
    return text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, f: starfire.plot(p), "path is an AttachedPruner; a path works; starfire.save"),
        (lambda p, f: starfire.plot([f]), "path is a list"),
        (lambda p, f: starfire.plot(f).save(f.with_suffix(".gif")), "does not end in .png"),
        (
            lambda p, f: starfire.compress("f", p),
            r"path is an AttachedPruner; a path works, in compress\(source, path\)",
        ),
        (
            lambda p, f: starfire.compress(f, f.with_suffix(".pth")),
            "path='.*model.pth': a .safetensors file is written",
        ),
        (
            lambda p, f: starfire.compress(p, f.with_suffix(".pth")),
            "path='.*model.pth': a .safetensors file is written",
        ),
        (
            lambda p, f: starfire.compress(f, "x.safetensors", masks={}),
            "of a checkpoint, 'stored' or 'from-zeros' work",
        ),
        (
            lambda p, f: starfire.compress(p, "x.safetensors", masks="stored"),
            "of a network in memory, masks by state-dict",
        ),
        (lambda p, f: starfire.save(p, f), r"path is an AttachedPruner; a path works, in save\(path, pruner\)"),
        (lambda p, f: starfire.inspect(f, p), "other is an AttachedPruner"),
        (lambda p, f: starfire.inspect(f, image=3), "image=3 is of type int"),  # type: ignore[call-overload]
        (lambda p, f: starfire.inspect(f, image="3x4"), "image='3x4' is not channels x height x width"),
        (lambda p, f: starfire.load(p), "path is an AttachedPruner"),
        (lambda p, f: starfire.load_model(f, num_classes=True), "num_classes=True is no whole number"),
        (lambda p, f: starfire.sparsify(f), "model is a PosixPath"),
        (lambda p, f: starfire.attack(f, BATCH), r"give it: model='resnet20'.*load_model\(path, ...\)"),
        (lambda p, f: starfire.attack(p.network, None), "loader is a NoneType; a DataLoader"),
        (lambda p, f: starfire.attack(p.network, 3), "loader is a int"),
        (lambda p, f: starfire.attack(p.network, BATCH, eps=[]), r"eps=\[\] names no size"),
        (lambda p, f: starfire.attack(p.network, BATCH, eps=[0, None]), "eps: None is"),  # type: ignore[list-item]
        (lambda p, f: starfire.attack(p.network, BATCH, eps=True), "eps: True is a bool"),
        (
            lambda p, f: starfire.attack(p.network, [(BATCH[0][0], BATCH[0][1] + 1)]),
            "go from 1 to 4.* 4 logits; 0 to 3",
        ),
        (lambda p, f: starfire.attach(*made(), method="CK", total_steps=9), "Did you mean 'ck'"),
        (lambda p, f: starfire.attach(*made(), method="kc", total_steps=9), "Did you mean 'ck'"),
        (lambda p, f: starfire.attach(*made(), method="thinet", total_steps=9), "prunes a network that is trained"),
        (lambda p, f: starfire.attach(*made(), mask_every="2", total_steps=9), "mask_every='2' is a str"),
    ],
)
def test_wrong_arguments_are_one_line(pruned, call, message):
    assert re.search(message, wrong(lambda: call(*pruned)))


class Answering(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.net, self.answer = made()[0], answer

    def forward(self, images):
        return self.answer(self.net(images))


class Output(UserDict):  # type: ignore[type-arg]
    """As those of transformers: a mapping whose entries are attributes."""

    def __getattr__(self, name):
        return self.data[name]


@pytest.mark.parametrize("answer", [lambda x: {"logits": x}, lambda x: Output(loss=None, logits=x)])
def test_outputs_with_logits_are_attacked_as_logits(answer):
    plain = starfire.attack(made()[0], BATCH, eps=[0, 0.1])
    found = starfire.attack(Answering(answer), BATCH, eps=np.array([0, 0.1], dtype=np.float32))
    assert [(x.label, x.correct) for x in found.points] == [(x.label, x.correct) for x in plain.points]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: {"out": x, "aux": x}, "returns a dict with out, aux; a tensor of logits"),
        (lambda x: (x, x), "returns a tuple; "),
        (lambda x: x[:, :, None], r"returns a tensor of shape \(1, 4, 1\) for one image"),
    ],
)
def test_outputs_without_logits_are_one_line(answer, message):
    model = Answering(answer).train()
    assert re.search(message, wrong(lambda: starfire.attack(model, BATCH)))
    assert model.training


@pytest.mark.parametrize("source", ["module", "path", "pruner"])
def test_what_is_not_pruned_is_said_to_stay_as_large(tmp_path, source):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, method="dense")
    given = {"module": model, "path": starfire.save(tmp_path / "model.pt", pruner), "pruner": pruner}[source]
    with pytest.warns(UserWarning, match="nothing of .* is pruned, so there is nothing to leave out"):
        found = starfire.compress(given, tmp_path / "packed.safetensors")
    assert found.ratio < 1.5


def test_a_pruner_whose_era_is_not_over_is_said(tmp_path):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, method="gmp", target=0.6, era_steps=(2, 10))
    trained(model, optimizer, 5)
    with pytest.warns(UserWarning, match="this is step 5 and the era is 2:10"):
        starfire.compress(pruner, tmp_path / "packed.safetensors")


def test_zeros_of_a_checkpoint_are_called_dead_on_request(tmp_path, pruned):
    torch.save(pruned[0].network.state_dict(), tmp_path / "plain.pt")
    found = starfire.compress(tmp_path / "plain.pt", tmp_path / "stored.safetensors")
    assert "masks='from-zeros' does" in found.notes[0]
    starfire.compress(tmp_path / "plain.pt", tmp_path / "masks.safetensors", masks="from-zeros")
    assert starfire.inspect(tmp_path / "masks.safetensors").masks_present


def test_records_print_as_tables(pruned, tmp_path):
    pruner, path = pruned
    found, packed = starfire.inspect(path), starfire.compress(pruner, tmp_path / "packed.safetensors")
    attacked, compared = starfire.attack(pruner.network, BATCH, eps=[0, 0.1]), starfire.inspect(path, path)
    for record in (found, packed, attacked, compared, pruner.summary()):
        lines = repr(record).splitlines()
        assert str(record) == repr(record) and len(lines) > 2
        assert "Finding(" not in repr(record) and max(map(len, lines[1:])) < 100
    assert f"{found.sparsity_prunable:.2%}" in str(found) and "10.weight" not in str(found)
    assert re.search(r"^0\.1 +\d+\.\d\d%", str(attacked), re.MULTILINE)
    assert "x smaller" in str(packed).splitlines()[0]


def test_names_of_options_that_are_none_stay():
    with pytest.raises(BadOption, match="source is a int"):
        starfire.compress(3, "x.safetensors")  # type: ignore[arg-type]
