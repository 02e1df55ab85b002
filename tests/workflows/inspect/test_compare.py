"""Two networks are compared on images that each sees as it was trained to, counted by nothing but torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import save
from tests.tiny import Net

Capture = pytest.CaptureFixture[str]
SIDE = 24
COUNT = 60
OPTIONS = ("--model", "tests.tiny:net", "--device", "cpu", "--workers", "0")


@pytest.fixture
def pixels(tmp_path: Path) -> Tensor:
    """Validation images on disk, and here as float64 in [0, 1]: (N, 3, H, W), each of one colour, of any size alike."""
    generator = torch.Generator().manual_seed(1)
    colours = (torch.rand(COUNT, 3, generator=generator) * 255).to(torch.uint8)
    for part in ("train", "val"):
        for number, colour in enumerate(colours):
            folder = tmp_path / "images" / part / f"class{number * 3 // COUNT}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (SIDE, SIDE), tuple(colour.tolist())).save(folder / f"{number:03}.png")
    return colours.double().view(COUNT, 3, 1, 1) / 255


def network(seed: int) -> Net:
    """A network that tells colours apart, each another way."""
    torch.manual_seed(seed)
    net = Net(3)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(-1, 1)
        net.eval()
        net.fc.bias.sub_(net(torch.rand(500, 3, 1, 1).expand(-1, -1, SIDE, SIDE)).mean(0))  # no class beforehand
    return net


def written(path: Path, net: nn.Module, images: Path | None, **data: Any) -> Path:
    """A checkpoint as `train` writes it; without `images` one that says nothing of its data."""
    known: dict[str, Any] = {"name": "folder", "spec": f"folder:{images}", "classes": ["class0", "class1", "class2"]}
    known |= {"image_size": SIDE, "mean": [0.0] * 3, "std": [1.0] * 3, "val_fraction": None, "split_seed": 0}
    known |= {"resize": None, "stored": SIDE} | data
    meta = {"data": known} if images is not None else {}
    save(path, state=net.state_dict(), masks=None, meta=meta)
    return path


@torch.no_grad()
def says(net: Net, pixels: Tensor, mean: list[float], std: list[float], side: int = SIDE) -> Tensor:
    shape = (1, 3, 1, 1)
    seen = (pixels - torch.tensor(mean).double().view(shape)) / torch.tensor(std).double().view(shape)
    return net(seen.expand(-1, -1, side, side).float()).argmax(1)


def flips(capsys: Capture, *arguments: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, arguments), *OPTIONS, "--evaluate", "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)["predictions"]


def checked(found: dict[str, Any], one: Tensor, two: Tensor) -> None:
    """What was found is what the two predictions, counted here, come to."""
    labels = torch.arange(COUNT) * 3 // COUNT
    assert found["images"] == COUNT and found["flipped"] == int((one != two).sum())
    assert found["top1_a"] == pytest.approx(float((one == labels).double().mean()))
    assert found["top1_b"] == pytest.approx(float((two == labels).double().mean()))
    assert found["right_only_in_a"] == int(((one == labels) & (two != labels)).sum())


ONE, TWO = ([0.1, 0.2, 0.6], [0.9, 0.3, 0.4]), ([0.5, 0.9, 0.0], [0.2, 0.9, 0.7])


def test_each_network_normalises_by_its_own_numbers(tmp_path: Path, capsys: Capture, pixels: Tensor) -> None:
    net = network(0)
    a = written(tmp_path / "a.pt", net, tmp_path / "images", mean=ONE[0], std=ONE[1])
    b = written(tmp_path / "b.pt", net, tmp_path / "images", mean=TWO[0], std=TWO[1])
    one, two = says(net, pixels, *ONE), says(net, pixels, *TWO)
    assert (one != two).sum() > 5, "by the same numbers the two would say the same"
    checked(flips(capsys, a, b), one, two)
    checked(flips(capsys, b, a), two, one)


def test_a_normalisation_that_lies_in_the_weights_changes_nothing(
    tmp_path: Path, capsys: Capture, pixels: Tensor
) -> None:
    """B divides in its first layer what A divides before it: one function, written in two ways."""
    std = [0.1, 0.7, 0.4]
    net, folded = network(0), network(0)
    with torch.no_grad():
        folded.conv1.weight.div_(torch.tensor(std).view(1, 3, 1, 1))
    a = written(tmp_path / "a.pt", net, tmp_path / "images", std=std)
    b = written(tmp_path / "b.pt", folded, tmp_path / "images")
    assert len(says(net, pixels, [0.0] * 3, std).unique()) > 1
    assert flips(capsys, a, b)["flipped"] == 0


def test_each_network_sees_its_own_size(tmp_path: Path, capsys: Capture, pixels: Tensor) -> None:
    net = network(2)
    a = written(tmp_path / "a.pt", net, tmp_path / "images")
    b = written(tmp_path / "b.pt", net, tmp_path / "images", image_size=8)
    one, two = (says(net, pixels, [0.0] * 3, [1.0] * 3, side) for side in (SIDE, 8))
    assert (one != two).any(), "the borders weigh more in a small image"
    found = flips(capsys, a, b)
    checked(found, one, two)
    assert found["notes"] == [f"each sees the images in its own size: A {SIDE} px, B 8 px"]


def test_a_file_that_says_nothing(tmp_path: Path, capsys: Capture, pixels: Tensor) -> None:
    """Whose numbers are taken is said, and they can be given; the other's own are left alone."""
    net = network(0)
    a = written(tmp_path / "a.pt", net, tmp_path / "images", mean=ONE[0], std=ONE[1])
    b = written(tmp_path / "b.pt", net, None)
    found = flips(capsys, a, b)
    assert found["flipped"] == 0 and "B does not say how it normalises images: mean 0.1,0.2,0.6" in found["notes"][0]
    found = flips(capsys, a, b, "--mean", ",".join(map(str, TWO[0])), "--std", ",".join(map(str, TWO[1])))
    checked(found, says(net, pixels, *ONE), says(net, pixels, *TWO))
    assert "notes" not in found
    assert main(["inspect", str(a), str(b), "--mean", "0.5"]) == 2
    assert "--mean and --std are for --evaluate" in capsys.readouterr().err


def test_an_attack_does_not_force_the_numbers_of_one_network_on_the_other(
    tmp_path: Path, capsys: Capture, pixels: Tensor
) -> None:
    """`--mean` and `--std` are for the second, whose file is silent; the first keeps its own."""
    net = network(0)
    a = written(tmp_path / "a.pt", net, tmp_path / "images", mean=ONE[0], std=ONE[1])
    b = written(tmp_path / "b.pt", net, None)
    arguments = ["attack", str(a), "--against", str(b), "--eps", "0", "--json", "--no-control", *OPTIONS]
    given = ["--mean", ",".join(map(str, TWO[0])), "--std", ",".join(map(str, TWO[1]))]
    assert main([*arguments, *given]) == 0
    found = json.loads(capsys.readouterr().out)
    labels = torch.arange(COUNT) * 3 // COUNT
    one, two = (float((says(net, pixels, *numbers) == labels).double().mean()) for numbers in (ONE, TWO))
    assert one != two
    assert found["points"][0]["top1"] == pytest.approx(one)
    assert found["against"]["points"][0]["top1"] == pytest.approx(two)
