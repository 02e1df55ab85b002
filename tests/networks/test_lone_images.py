"""BatchNorm is never given a single value of a channel, and that is said before anything is trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.cli import main
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.networks.lone_images import check_batches, needs_two, without_lone
from starfire_cli.workflows.prune.oneshot import recalibrate
from starfire_cli.workflows.train.micro_batches import part_sizes, parts
from tests.tiny import narrow, net, plain

COUNTS = st.integers(1, 200)


@given(COUNTS, COUNTS)
def test_parts_are_those_of_chunk_but_for_single_images(images: int, accumulate: int) -> None:
    chunks = [len(chunk) for chunk in torch.zeros(images).chunk(accumulate)]
    assert part_sizes(images, accumulate, pairs=False) == chunks
    sizes = part_sizes(images, accumulate, pairs=True)
    assert sum(sizes) == images and (images == 1 or min(sizes) > 1)
    assert max(sizes) <= max(max(chunks), 2) + 1 and len(sizes) <= accumulate
    if images == 1 or 1 not in chunks:
        assert sizes == chunks


def test_five_images_in_four_parts() -> None:
    images, labels = torch.arange(5.0), torch.arange(5)
    found = list(parts(images, labels, 4, pairs=True))
    assert [part.labels.tolist() for part in found] == [[0, 1], [2, 3, 4]]
    assert [(part.start, part.last) for part in found] == [(0, False), (2, True)]
    assert list(parts(images[:0], labels[:0], 4, pairs=True)) == []


@given(st.integers(1, 30), st.integers(1, 60), st.integers(1, 4))
def test_a_step_with_one_image_is_refused_beforehand(batch: int, images: int, ranks: int) -> None:
    batch = max(ranks, min(batch, images))
    if images < batch:
        return

    def shares(batch: int) -> list[int]:
        steps = [range(images)[at : at + batch] for at in range(0, images, batch)]
        if batch > 1 and len(steps[-1]) == 1:  # which data leave out
            steps.pop()
        return [len(step[rank::ranks]) for step in steps for rank in range(ranks)]

    if 1 not in shares(batch):
        check_batches(NARROW, 8, batch=batch, images=images, ranks=ranks)
        return
    check_batches(net(4), 8, batch=batch, images=images, ranks=ranks)  # its maps are larger
    check_batches(plain(4), 16, batch=batch, images=images, ranks=ranks)  # and this one has no BatchNorm
    with pytest.raises(BadOption, match=f"--batch-size {batch} .*BatchNorm .last.") as caught:
        check_batches(NARROW, 8, batch=batch, images=images, ranks=ranks)
    if found := re.search(r"--batch-size (\d+) works", str(caught.value)):
        assert 1 not in shares(int(found[1]))
    else:
        assert all(1 in shares(b) for b in range(max(2, ranks), images + 1))


NARROW = narrow(4)


def test_the_layer_is_found_as_torch_finds_it() -> None:
    torchvision = pytest.importorskip("torchvision")
    resnet = torchvision.models.resnet18(num_classes=3)
    for side, wanted in ((32, "layer4.0.bn1"), (33, None)):
        assert needs_two(resnet, side) == wanted
        resnet.train()
        if wanted:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                resnet(torch.rand(1, 3, side, side))
        else:
            resnet(torch.rand(1, 3, side, side))
        assert resnet.training


# 21 images of digits: 20 are a batch and a last one of one image, which data leave out; 5 in 4 parts, and so on.
@pytest.mark.parametrize(("batch", "accumulate", "limit"), [(5, 4, 25), (8, 8, 21), (5, 5, 20), (3, 2, 21), (2, 2, 20)])
def test_training_in_parts(tmp_path: Path, batch: int, accumulate: int, limit: int) -> None:
    numbers = ["-b", str(batch), "--accumulate", str(accumulate), "--limit-train", str(limit), "--limit-val", "10"]
    options = ["--model", "tests.tiny:narrow", "-e", "1", "-j", "0", "-q", "--device", "cpu", "--era", "0:1"]
    assert main(["train", *options, *numbers, "--out", str(tmp_path), "--name", "a"]) == 0
    load(tmp_path / "a" / "last.pt")


def test_batches_of_one_image_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--limit-train", "20", "--limit-val", "10", "-j", "0", "-q", "--era", "0:1", "-e", "1", "-b", "1"]
    command = ["train", *options, "--device", "cpu", "--out", str(tmp_path), "--model"]
    assert main([*command, "tests.tiny:narrow"]) == 2
    said = capsys.readouterr().err
    assert "--batch-size 1 " in said and "--batch-size 2 works" in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "tests.tiny:net"]) == 0  # whose maps are larger


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_batches_of_one_are_joined_with_a_neighbour(sizes: list[int]) -> None:
    images = torch.arange(sum(sizes))
    found = list(without_lone(images.split(sizes)))
    assert torch.equal(torch.cat(found), images)
    assert len(images) == 1 or min(map(len, found)) > 1
    if 1 not in sizes:
        assert [len(group) for group in found] == sizes


@pytest.mark.parametrize("sizes", [[1] * 8, [4, 3, 1], [1, 7]])
def test_recalibration_with_single_images(sizes: list[int]) -> None:
    model = narrow(4)
    images = torch.rand(8, 3, 8, 8)
    batches = [(part, torch.zeros(len(part))) for part in images.split(sizes)]
    assert recalibrate(model, model, iter(batches), 99) > 0
    assert torch.isfinite(model.last.running_var).all() and not model.training


def test_recalibration_on_one_image_is_refused_and_nothing_is_lost() -> None:
    model = narrow(4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(StarfireError, match=r"one training image, and BatchNorm .last."):
        recalibrate(model, model, iter([(torch.rand(1, 3, 8, 8), torch.zeros(1))]), 3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    wide = net(4)
    assert recalibrate(wide, wide, iter([(torch.rand(1, 3, 8, 8), torch.zeros(1))]), 3) == 1
