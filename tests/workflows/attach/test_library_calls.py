"""What the commands do, from Python: the same numbers, typed, with tables for notebooks."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import starfire_cli as starfire
from starfire_cli.cli import main
from starfire_cli.errors import StarfireError
from tests.workflows.attach.loops import STEPS, assert_equal, made, state_of, trained

pytestmark = pytest.mark.filterwarnings("ignore:target=.* comes to")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, target=0.6, era_steps=(2, 10))
    trained(model, optimizer, STEPS)
    path = starfire.save(tmp_path_factory.mktemp("saved") / "model.pt", pruner)
    return model.eval(), pruner, path


class Cells(HTMLParser):
    """The texts of a table's cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_inspect_gives_what_the_command_prints(pruned, capsys):
    _, pruner, path = pruned
    found = starfire.inspect(path)
    main(["inspect", str(path), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert found.sparsity_prunable == pruner.sparsity == printed["total"]["sparsity_prunable"]
    assert [x.zeros for x in found.layers] == [x["zeros"] for x in printed["layers"]]
    assert f"{found.sparsity_prunable:.2%}" in Cells(found._repr_html_()).texts


def test_inspect_compares_two(pruned, tmp_path):
    _, pruner, path = pruned
    torch.save(made(seed=3)[0].state_dict(), tmp_path / "dense.pt")
    found = starfire.inspect(tmp_path / "dense.pt", path)
    assert found.died == sum(int((~m).sum()) for m in pruner.masks.values()) and found.revived == 0
    assert f"{found.died:,}" in Cells(found._repr_html_()).texts


@pytest.mark.parametrize("source", ["path", "pruner", "module"])
def test_compress_loses_nothing(pruned, tmp_path, source):
    model, pruner, path = pruned
    out = tmp_path / "packed.safetensors"
    found = starfire.compress({"path": path, "pruner": pruner, "module": model}[source], out)
    assert_equal(starfire.load(out), state_of(model))
    assert found.packed.packed_bytes == out.stat().st_size
    assert starfire.inspect(out).zeros == sum(pruner.core.zeros.values())
    assert f"{found.ratio:.1f} x smaller" in found._repr_html_()


class Line(nn.Module):
    """Class 1 where the mean pixel is above a half: FGSM moves it by exactly eps."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        mean = self.scale * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-mean, mean], 1)


def test_attack_moves_pixels_by_eps():
    levels = torch.tensor([0.30, 0.46, 0.52, 0.70])
    images = levels.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    loader = DataLoader(TensorDataset(images, (levels > 0.5).long()), batch_size=3)
    model = Line().train()
    found = starfire.attack(model, loader, eps=[0, 0.03, "13/255", 0.25])
    assert [point.correct for point in found.points] == [4, 3, 2, 0]
    assert found.top1(0.03) == 0.75 and model.training
    assert set(found.controls) == {"noise"}
    assert "75.00%" in Cells(found._repr_html_()).texts


def test_attack_of_normalised_images_is_that_of_pixels():
    """A loader that normalises, and a network that expects so."""
    torch.manual_seed(0)
    images, labels = torch.rand(20, 3, 7, 7), torch.randint(0, 4, (20,))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    net = made()[0].eval()
    shift, scale = (torch.tensor(x).view(1, 3, 1, 1) for x in (mean, std))
    pixels = starfire.attack(_Normalising(net, shift, scale), [(images, labels)], eps=[0, 0.05], control=False)
    normal = starfire.attack(net, [((images - shift) / scale, labels)], eps="0,0.05", mean=mean, std=std, control=False)
    assert [p.correct for p in pixels.points] == [p.correct for p in normal.points]


def test_grey_images_are_normalised_by_one_number():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(49, 4))
    images, labels = torch.rand(20, 1, 7, 7), torch.randint(0, 4, (20,))
    pixels = starfire.attack(nn.Sequential(Shift(), net), [(images, labels)], eps=[0, 0.05], control=False)
    for mean, std in ((0.5, 0.25), (torch.tensor([0.5]), (0.25,))):
        batches = [((images - 0.5) / 0.25, labels)]
        normal = starfire.attack(net, batches, eps=[0, 0.05], mean=mean, std=std, control=False)
        assert [p.correct for p in pixels.points] == [p.correct for p in normal.points]


class Shift(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.25


def test_batches_may_be_dicts():
    images, labels = torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 1, 0])
    plain = starfire.attack(Line(), [(images, labels)], eps=[0, 0.1], control=False)
    for names in (("pixel_values", "labels"), ("img", "label")):
        batches = (
            {**dict(zip(names, (x[None], y[None]), strict=True)), "id": 3} for x, y in zip(images, labels, strict=True)
        )
        found = starfire.attack(Line(), batches, eps=[0, 0.1], control=False)
        assert [p.correct for p in found.points] == [p.correct for p in plain.points]


def test_the_size_in_an_attack_is_measured():
    batches = [(torch.rand(2, 3, 4, 4), torch.zeros(2).long())]
    found = starfire.attack(Line(), batches, attack="pgd:eps=0.1,steps=2", steps=2, control=False)
    assert [point.eps for point in found.points] == [0, 0.1]


class _Normalising(nn.Module):
    def __init__(self, net, mean, std):
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "gives no batch"),
        ([torch.rand(2, 3, 4, 4)], {}, "a batch of the loader is a Tensor"),
        ([(torch.rand(2, 3, 4, 4), torch.rand(2))], {}, r"labels of the loader are a tensor \(2,\) of float32; whole"),
        ([(torch.rand(2, 3, 4, 4), torch.eye(2).long())], {}, r"labels of the loader are a tensor \(2, 2\) of int64"),
        ([(torch.rand(3, 4, 4), 0)], {}, r"images of the loader are a tensor \(3, 4, 4\) of float32; .* DataLoader"),
        ([(np.zeros((2, 3, 4, 4)), [0, 1])], {}, "images of the loader are a ndarray"),
        ([{"image": torch.rand(2, 3, 4, 4)}], {}, "a batch of the loader is a dict with image; a pair"),
        ([(torch.rand(2, 3, 4, 4) * 3 - 1, torch.zeros(2).long())], {}, "mean=... and std=... say how"),
        ([(torch.rand(2, 3, 4, 4), torch.zeros(2).long())], {"eps": "much"}, "eps='much'"),
        ([(torch.rand(2, 3, 4, 4), torch.zeros(2).long())], {"attack": "pdg"}, "Did you mean 'pgd'"),
        ([(torch.rand(2, 3, 4, 4), torch.zeros(2).long())], {"mean": (0, 0, 0)}, "mean and std go together"),
        (
            [(torch.rand(2, 1, 4, 4), torch.zeros(2).long())],
            {"mean": (0, 0, 0), "std": (1, 1, 1)},
            "mean has 3 numbers, and images of the loader have 1 channels",
        ),
        ([], {"attack": "pgd:steps=3", "steps": 4}, "attack='pgd:steps=3' says steps=3, and steps=4 says otherwise"),
        ([], {"attack": "pgd:eps=0.1", "eps": 0.1}, "attack='pgd:eps=0.1' says eps=0.1, and eps="),
        ([], {"attack": "pgd:norm=l2", "norm": "linf"}, "says norm=l2, and norm='linf' says otherwise"),
    ],
)
def test_what_attack_cannot_do_is_one_line(batches, options, message):
    with pytest.raises(StarfireError, match=message) as caught:
        starfire.attack(Line(), batches, **options)
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)


def test_plot_returns_figures(pruned, tmp_path):
    found = starfire.plot(pruned[2])
    assert {"layers", "window", "kernels"} <= found.keys()
    assert found["layers"].get_axes()
    assert found._repr_html_().count("<img") == len(found)
    (file,) = starfire.plot(pruned[2], kind="layers").save(tmp_path / "layers.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StarfireError, match="unknown kind='layer'"):
        starfire.plot(pruned[2], kind="layer")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.pt", None, r"^.*cut\.pt is cut short or damaged"),
        ("text.pt", b"hello", r"^.*text\.pt is no checkpoint: it starts with b'hello'$"),
        ("empty.pt", b"", r"^.*empty\.pt is empty$"),
        ("other.json", b"{}", r"^.*other\.json is no result of starfire attack$"),
        ("cut.json", b'{"a": ', r"^.*cut\.json is damaged: .*char \d+\)$"),
    ],
)
def test_what_cannot_be_read_is_not_drawn(pruned, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(pruned[2].read_bytes()[:3000] if content is None else content)
    with pytest.raises(StarfireError, match=message):
        starfire.plot(tmp_path / name)


def test_importing_starfire_loads_nothing_heavy():
    code = "import sys, starfire_cli; print([m for m in ('torch', 'numpy', 'matplotlib', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("call", [lambda: starfire.attack(3, []), lambda: starfire.compress(3, "x.safetensors")])
def test_what_is_no_model_is_said(call):
    with pytest.raises(StarfireError, match=r"(model=3 is an|source is a) int; "):
        call()
