"""Advice that can be followed: sparse networks under attack, and the accuracy that rounding costs."""

from __future__ import annotations

import re

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import starfire_cli as starfire
from starfire_cli.errors import StarfireError
from tests.workflows.attach.loops import made

BATCH = [(torch.rand(4, 3, 7, 7), torch.tensor([0, 1, 2, 3]))]


@pytest.mark.parametrize("inside", [False, True])
def test_a_sparse_network_only_predicts(inside):
    pytest.importorskip("llvmlite")
    model = starfire.sparsify(made()[0].eval(), rivals=False)
    with pytest.raises(StarfireError, match=r"^model is a sparse network, which only predicts .*without sparse=True"):
        starfire.attack(nn.Sequential(model) if inside else model, BATCH)


OWN = """
import torch
from torch import nn

def build(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A network of one's own in a file that does not say which, and images in folders."""
    import importlib

    from PIL import Image

    (tmp_path / "own_digits.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = importlib.import_module("own_digits").build()
    digits = load_digits()
    for part in ("train", "val"):
        for number, (image, label) in enumerate(zip(digits.images[:40], digits.target, strict=False)):
            folder = tmp_path / "digits" / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).convert("RGB").save(folder / f"{number}.png")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = starfire.attach(model, optimizer, method="dense")
    return pruner, starfire.save(tmp_path / "own.pt", pruner), f"folder:{tmp_path / 'digits'}"


@pytest.mark.filterwarnings("ignore:nothing of")
@pytest.mark.parametrize("source", ["file", "pruner"])
def test_the_cost_of_rounding_a_network_of_ones_own_is_measured(own, tmp_path, source):
    pruner, file, data = own
    given = {"file": file, "pruner": pruner}[source]
    out = tmp_path / "packed.safetensors"
    with pytest.raises(StarfireError, match="model="):
        starfire.compress(given, out, values="bf16", data=data)
    assert not out.exists()
    with pytest.raises(StarfireError, match="mean="):
        starfire.compress(given, out, values="bf16", data=data, model="own_digits:build")
    scale = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    found = starfire.compress(given, out, values="bf16", data=data, model="own_digits:build", images=20, **scale)
    assert found.accuracy is not None and found.accuracy.images == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [({"images": 0}, "images=0 is out of range: images, at least 1"), ({"images": 16}, "data")],
)
def test_images_that_cannot_be_measured_are_said(own, tmp_path, options, message):
    with pytest.raises(StarfireError) as caught:
        starfire.compress(own[1], tmp_path / "packed.safetensors", values="bf16", **options)
    assert re.search(message, str(caught.value)) and "limit" not in str(caught.value)
    assert not (tmp_path / "packed.safetensors").exists()
