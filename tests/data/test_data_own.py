"""Data sets of the user as package.module:callable: read as they are, and never because a file names them."""

from __future__ import annotations

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.data import DataOptions, open_data, recognise
from starfire_cli.errors import BadOption
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest

MODULE = """
import numpy as np
import torch
from PIL import Image

class Stripes(torch.utils.data.Dataset):
    classes = ["lying", "standing"]
    def __init__(self, count, kind="float"):
        self.count, self.kind = count, kind
    def __len__(self):
        return self.count
    def __getitem__(self, n):
        image = torch.zeros(1 if self.kind == "grey" else 3, 16, 16)
        line = n // 2 % 16
        (image[:, line] if n % 2 == 0 else image[:, :, line]).fill_(1.0)
        if self.kind == "uint8":
            image = (image * 255).to(torch.uint8)
        if self.kind == "pil":
            image = Image.fromarray((image * 255).to(torch.uint8).permute(1, 2, 0).numpy())
        return image, n % 2

def floats(): return Stripes(64), Stripes(32)
def uint8s(): return Stripes(64, "uint8"), Stripes(32, "uint8")
def pils(): return Stripes(64, "pil"), Stripes(32, "pil")
def greys(): return Stripes(64, "grey"), Stripes(32, "grey")
def one(): return Stripes(64)
def three(): return Stripes(4), Stripes(4), Stripes(4)
def none(): return None
def empty(): return Stripes(0)
def normalised(): return [(torch.randn(3, 8, 8) * 2, 0)] * 4
def oblong(): return [(torch.rand(3, 8, 9), 0)] * 4
def mixed(): return [(torch.rand(3, 8, 8), 0), (torch.rand(3, 9, 9), 1)]
def texts(): return [("image", 0)] * 4
def digits(count=8): return [(torch.rand(3, 8, 8), n % 2) for n in range(count)]
def items(count, kind="float"): return [Stripes(count, kind)[n] for n in range(count)]
def listed(): return [Stripes(64), Stripes(32)]
def named(): return {"train": Stripes(64), "validation": Stripes(32)}
def dicts(): return [{"img": x, "label": y} for x, y in items(64)], [{"image": x, "labels": y} for x, y in items(32)]
def arrays(): return tuple([(np.array(x), np.array([y])) for x, y in items(n, "pil")] for n in (64, 32))
def wholes(): return [(x, torch.tensor([float(y)])) for x, y in items(64)], items(32)
def tests(): return {"train": digits(), "test": digits()}
def loader(): return torch.utils.data.DataLoader(digits(), 4)
def tensors(): return torch.rand(8, 3, 8, 8), torch.zeros(8)
def triples(): return [(x, y, "path") for x, y in digits()]
def onehot(): return [(x, torch.eye(2)[y]) for x, y in digits()]
def shares(): return [(x, 0.5) for x, _ in digits()]
def words(): return [(x, "cat") for x, _ in digits()]
def keyed(): return [{"pixels": x, "label": y} for x, y in digits()]
def broken(): raise RuntimeError("no disk\\nat all")
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    folder.joinpath("own_data_for_test.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


@pytest.mark.parametrize("name", ["floats", "uint8s", "pils", "greys", "listed", "named", "dicts", "arrays", "wholes"])
def test_every_kind_of_image_is_read_as_it_is(name):
    data = open_data(f"own_data_for_test:{name}", DataOptions(batch_size=8))
    unnamed = name in ("dicts", "arrays", "wholes")  # lists, which have no class names
    assert (data.info.classes, data.info.image_size) == (("0", "1") if unnamed else ("lying", "standing"), 16)
    assert (len(data.train), len(data.val)) == (64, 32)
    assert data.info.spec == f"own_data_for_test:{name}"
    images, labels = next(data.val.batches(0))
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        expected = torch.zeros(3, 16, 16)
        (expected[:, n // 2 % 16] if n % 2 == 0 else expected[:, :, n // 2 % 16]).fill_(1.0)
        assert torch.equal(image, expected) and label == n % 2


def test_of_one_set_a_share_is_held_out():
    data = open_data("own_data_for_test:one", DataOptions(batch_size=8, val_fraction=0.25))
    assert (len(data.train), len(data.val)) == (48, 16)
    assert recognise("own_data_for_test:one") == ("own_data_for_test", 16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "has no 'missing'; it has Stripes, "),
        ("three", r"3 values were returned; \(train, val\) or one data set works"),
        ("none", "train is a NoneType"),
        ("empty", "train is empty"),
        ("normalised", "image 0 of train has pixels from"),
        ("oblong", r"image 0 of train has shape \(3, 8, 9\)"),
        ("mixed", "image 1 of train has shape .*the first"),
        ("texts", "image 0 of train is a str"),
        ("tests", "a dict with train, test was returned; .* or a dict of train and val"),
        ("loader", r"train is a DataLoader; its data set works, loader\.dataset"),
        ("tensors", r"train is a Tensor; .*TensorDataset\(images, labels\)"),
        ("triples", r"item 0 of train is a tuple of 3 values; \(image, label\)"),
        ("onehot", r"label 0 of train is of shape \(2,\); a whole number from 0 works \(one-hot: label\.argmax"),
        ("shares", "label 0 of train is '0.5', a float; a whole number"),
        ("words", "label 0 of train is 'cat', a str"),
        ("keyed", "item 0 of train is a dict with pixels, label; "),
        ("broken", r"broken\(\) failed with RuntimeError: no disk$"),
    ],
)
def test_what_is_wrong_is_one_line(name, message):
    with pytest.raises(BadOption, match=message) as caught:
        open_data(f"own_data_for_test:{name}", DataOptions(batch_size=2))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("data 'own_data_for_test:")


def test_names_that_are_none_are_said():
    with pytest.raises(BadOption, match="there is no module 'nowhere_at_all'"):
        open_data("nowhere_at_all:data", DataOptions())


def test_a_file_that_names_code_never_runs_it(tmp_path, capsys):
    options = {"model": "tests.tiny:net", "epochs": 1, "target": 0.3, "era": "0:1", "batch_size": 16, "device": "cpu"}
    records = list(train(TrainRequest(data="own_data_for_test:floats", **options, out=tmp_path)))
    last = str(records[-1].run / "last.pt")
    for words in (
        ["train", "--resume", last, "--model", "tests.tiny:net"],
        ["train", "--init", last, "--model", "tests.tiny:net"],
        ["attack", last, "--model", "tests.tiny:net"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "own_data_for_test:floats, whose code is not run" in said and said.count("\n") == 1
    assert (
        main(["attack", last, "--model", "tests.tiny:net", "--data", "own_data_for_test:floats", "--images", "4"]) == 0
    )
