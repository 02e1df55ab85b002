"""Data across ranks: together they get what one process gets alone, every image once, augmented the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from starfire_cli.data import open_data
from tests.helpers.data_layouts import class_folders, options, train_and_val

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module", params=["resident", "stream"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 and 5 images a class: the last batch of 8 has 6, the last validation batch of 3 has 1."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "resident":
        return train_and_val(folder, train=11, val=5)
    class_folders(folder / "train", ("cat", "dog"), 11, size=(120, 150), suffix=".jpg")
    class_folders(folder / "val", ("cat", "dog"), 5, size=(150, 120), suffix=".jpg", seed=500)
    return folder


def batches(root: Path, part: str, rank: int = 0, ranks: int = 1, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    size = 32 if root.name.startswith("stream") else None
    how = options(batch_size=8, eval_batch_size=3, image_size=size, rank=rank, ranks=ranks)
    split = getattr(open_data(str(root), how), part)
    assert len(split) == (22 if part == "train" else 10)
    found = list(split.batches(1, start=start))
    assert len(found) == split.steps - start
    return found


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("start", [0, 2])
def test_shares_are_the_batch_dealt_out(root: Path, part: str, ranks: int, start: int) -> None:
    alone = batches(root, part, start=start)
    shares = [batches(root, part, rank, ranks, start) for rank in range(ranks)]
    for step, (images, labels) in enumerate(alone):
        for rank in range(ranks):
            got_images, got_labels = shares[rank][step]
            assert torch.equal(got_labels, labels[rank::ranks])
            assert torch.equal(got_images, images[rank::ranks])
            assert got_images.shape[1:] == images.shape[1:] and got_images.dtype == images.dtype
    if ranks == 7:
        assert any(not len(labels) for _, labels in shares[6]), "some share should be empty here"
