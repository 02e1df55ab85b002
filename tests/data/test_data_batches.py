from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from starfire_cli.data import Data, Split, open_data, open_val
from starfire_cli.data.finding import find
from starfire_cli.data.images.workers import Answer, ImageReader, Request, answers, worker_failure
from starfire_cli.data.source import Files
from starfire_cli.errors import BadOption, StarfireError
from tests.helpers.data_layouts import class_folders, options, train_and_val

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_and_val(tmp_path_factory.mktemp("small"), train=11, val=5)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    class_folders(root / "train", ("cat", "dog"), 6, size=(120, 150), suffix=".jpg")
    class_folders(root / "val", ("cat", "dog"), 3, size=(150, 120), suffix=".jpg", seed=500)
    return root


def together(split: Split, epoch: int, start: int = 0) -> tuple[Tensor, Tensor]:
    batches = list(split.batches(epoch, start=start))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def opened(root: Path, **given: object) -> Data:
    return open_data(str(root), options(image_size=32 if root.name.startswith("large") else None, **given))


@pytest.fixture(params=["small", "large"])
def root(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_batches_are_what_the_contract_says(root: Path) -> None:
    data = opened(root)
    large = root.name.startswith("large")
    assert (data.info.stored is None) == large
    for split in (data.train, data.val):
        batches = list(split.batches(0))
        assert len(batches) == split.steps and sum(len(labels) for _, labels in batches) == len(split)
        for images, labels in batches:
            assert images.dtype == torch.float32 and labels.dtype == torch.int64
            assert images.shape == (len(labels), 3, data.info.image_size, data.info.image_size)
            assert images.is_contiguous() and images.min() >= 0 and 0.1 < images.max() <= 1
            assert torch.equal((images * 255).round() / 255, images)
    assert len(data.train) == data.info.train_images and len(data.val) == data.info.val_images


def test_workers_change_nothing_and_neither_does_a_start_in_the_middle(root: Path) -> None:
    here, apart = opened(root), opened(root, workers=2)
    for epoch in (0, 3):
        images, labels = together(here.train, epoch)
        there = together(apart.train, epoch)
        assert torch.equal(images, there[0]) and torch.equal(labels, there[1])
        for start in (1, here.train.steps - 1, here.train.steps):
            rest = list(apart.train.batches(epoch, start=start))
            assert len(rest) == here.train.steps - start
            if rest:
                assert torch.equal(torch.cat([x for x, _ in rest]), images[4 * start :])
    assert torch.equal(together(here.val, 0)[0], together(apart.val, 9)[0])


def test_an_image_looks_the_same_wherever_it_falls_in_an_epoch(root: Path) -> None:
    by_four, by_three = together(opened(root).train, 1), together(opened(root, batch_size=3).train, 1)
    both = min(len(by_four[0]), len(by_three[0]))  # a last batch of one is left out
    assert both >= 8 and torch.equal(by_four[0][:both], by_three[0][:both])


def test_epochs_and_seeds_differ(root: Path) -> None:
    first = together(opened(root).train, 0)[0]
    assert not torch.equal(first, together(opened(root).train, 1)[0])
    assert not torch.equal(first, together(opened(root, seed=1).train, 0)[0])


@pytest.mark.parametrize("batch", [2, 3, 4, 5])
def test_each_image_comes_exactly_once_an_epoch(root: Path, batch: int) -> None:
    data = opened(root, augment="none", batch_size=batch)
    everything = {image.numpy().tobytes() for image in together(opened(root, augment="none", batch_size=1).train, 0)[0]}
    for epoch in range(2):
        seen = [image.numpy().tobytes() for image in together(data.train, epoch)[0]]
        # BatchNorm cannot train on one image: a last batch of one is left out, a fuller one is not.
        assert len(seen) == len(everything) - (len(everything) % batch == 1)
        assert len(set(seen)) == len(seen) and set(seen) <= everything


def test_torchs_and_numpys_generators_are_left_alone(root: Path) -> None:
    before = torch.get_rng_state(), str(np.random.get_state())
    data = opened(root, workers=2)
    together(data.train, 0), together(data.val, 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())


def test_labels_belong_to_their_images(tmp_path: Path) -> None:
    for side, name in ((20, "small"), (120, "large")):
        for part in ("train", "val"):
            for c in range(4):
                (tmp_path / name / part / f"c{c}").mkdir(parents=True)
                for i in range(3):
                    grey = Image.new("RGB", (side, side), (50 * c + i,) * 3)
                    grey.save(tmp_path / name / part / f"c{c}" / f"{i}.png")
        data = open_data(str(tmp_path / name), options(image_size=16, augment="rrc-flip"))
        for split in (data.train, data.val):
            images, labels = together(split, 0)
            assert torch.equal((images.mean(dim=(1, 2, 3)) * 255).round().long() // 50, labels)


def test_channels_last_changes_the_memory_and_nothing_else(root: Path) -> None:
    for plain, other in zip(
        opened(root).train.batches(0), opened(root, channels_last=True).train.batches(0), strict=True
    ):
        assert other[0].is_contiguous(memory_format=torch.channels_last) and torch.equal(plain[0], other[0])


def test_autocast_around_the_batches_changes_nothing(small: Path) -> None:
    for spec in ("rrc-flip", "affine"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = together(opened(small, augment=spec).train, 0)[0]
        assert torch.equal(inside, together(opened(small, augment=spec).train, 0)[0])


def test_eval_batches_have_their_own_size(root: Path) -> None:
    data = opened(root, eval_batch_size=5)
    assert len(next(data.val.batches(0))[1]) == 5 and data.train.steps == -(-len(data.train) // 4)


def test_small_images_are_scaled_for_a_larger_network_as_large_ones_are(small: Path) -> None:
    data = open_data(str(small), options(image_size=28, augment="rrc-flip"))
    assert (data.info.stored, data.info.image_size, data.info.resize) == (20, 28, 32)
    plain = open_data(str(small), options(image_size=28))
    assert plain.info.resize is None and together(plain.val, 0)[0].shape[-1] == 28
    assert together(plain.train, 0)[0].shape[-1] == 28


def test_limits_are_spread_over_the_classes_and_seeded(small: Path) -> None:
    data = open_data(str(small), options(limit_train=6, limit_val=4))
    assert (len(data.train), len(data.val)) == (6, 4)
    assert torch.bincount(together(data.train, 0)[1]).tolist() == [3, 3]
    again = open_data(str(small), options(limit_train=6, limit_val=4))
    assert torch.equal(together(data.train, 0)[0], together(again.train, 0)[0])


def test_a_held_out_share_is_stratified_and_its_own(tmp_path: Path) -> None:
    class_folders(tmp_path, ("a", "b", "c"), 10)
    data = open_data(str(tmp_path), options(augment="none", val_fraction=0.3, batch_size=3))
    assert (len(data.train), len(data.val), data.info.val_fraction) == (21, 9, 0.3)
    assert torch.bincount(together(data.val, 0)[1]).tolist() == [3, 3, 3]
    parts = [{x.numpy().tobytes() for x in together(split, 0)[0]} for split in (data.train, data.val)]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 30
    other = open_data(str(tmp_path), options(augment="none", val_fraction=0.3, split_seed=1))
    assert {x.numpy().tobytes() for x in together(other.val, 0)[0]} != parts[1]


@pytest.mark.parametrize("how", [{}, {"image_size": 24}, {"augment": "rrc-flip", "image_size": 28}])
def test_a_checkpoint_finds_its_validation_images_again(root: Path, how: dict[str, object]) -> None:
    data = open_data(str(root), options(**({"image_size": 32} | how)))
    info, split = open_val(data.info.as_meta(), None, options())
    assert torch.equal(together(split, 0)[0], together(data.val, 0)[0])
    assert torch.equal(together(split, 0)[1], together(data.val, 0)[1])
    assert (info.classes, info.mean, info.std, info.resize) == (
        data.info.classes,
        data.info.mean,
        data.info.std,
        data.info.resize,
    )


def test_a_split_is_found_again_where_the_data_moved(tmp_path: Path) -> None:
    old = class_folders(tmp_path / "old", ("a", "b"), 8)
    data = open_data(str(old), options(split_seed=3))
    expected, meta = together(data.val, 0)[0], data.info.as_meta()
    old.rename(tmp_path / "new")
    with pytest.raises(StarfireError, match=r"old.*--data PATH says where they are now"):
        open_val(meta, None, options())
    _, split = open_val(meta, str(tmp_path / "new"), options())
    assert torch.equal(together(split, 0)[0], expected)


def test_other_data_must_have_the_checkpoints_classes(small: Path, tmp_path: Path) -> None:
    meta = open_data(str(small), options()).info.as_meta()
    class_folders(tmp_path / "flat", ("cat", "dog"), 3, seed=9)
    info, split = open_val(meta, str(tmp_path / "flat"), options())
    assert len(split) == 6 and info.val_fraction is None  # nothing was held out in training, so nothing is here
    class_folders(tmp_path / "other", ("cat", "doge"), 3)
    with pytest.raises(StarfireError, match="only in the checkpoint: dog; only in the data: doge"):
        open_val(meta, str(tmp_path / "other"), options())


def test_without_a_record_of_the_data_they_must_be_given(small: Path) -> None:
    with pytest.raises(BadOption, match="--data"):
        open_val({}, None, options())
    info, split = open_val({}, str(small), options())
    assert len(split) == 10 and info.name == "folder"
    with pytest.raises(StarfireError, match="damaged"):
        open_val({"name": "folder", "spec": str(small), "classes": 3}, None, options())


class _Dies(ImageReader):
    def __getitem__(self, request: Request) -> Answer:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class _Hangs(ImageReader):
    def __getitem__(self, request: Request) -> Answer:
        signal.pause()
        raise AssertionError


@pytest.mark.parametrize(("reader", "text"), [(_Dies, "has died"), (_Hangs, "no batch from the 1 workers for 0.5 s")])
def test_a_lost_worker_is_an_error_and_not_a_hang(
    large: Path, reader: type[ImageReader], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.3)  # how long a silent one is waited for
    files = find(str(large)).train
    assert isinstance(files, Files)
    requests = [(0, np.arange(2))]
    with pytest.raises(StarfireError, match=text):
        list(answers(reader(files=files, out=8, resize=8), requests, options(timeout=0.5), workers=1))


def test_ctrl_c_and_sigterm_for_the_whole_group_leave_the_workers_alone(large: Path) -> None:
    expected = [images for images, _ in opened(large).train.batches(0)]
    batches = opened(large, workers=2).train.batches(0)
    seen = [next(batches)[0], next(batches)[0]]  # one from each worker, so that both are past their start
    workers = [p for p in multiprocessing.active_children() if p.pid is not None]
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid or 0, number)
    seen += [images for images, _ in batches]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert not any(worker.is_alive() for worker in workers)


def test_workers_end_when_an_epoch_is_broken_off(large: Path) -> None:
    batches = opened(large, workers=2).train.batches(0)
    next(batches)
    workers = multiprocessing.active_children()
    batches.close()  # type: ignore[attr-defined]
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)


def test_other_runtime_errors_are_not_taken_for_lost_workers() -> None:
    assert worker_failure(RuntimeError("shapes do not match"), 2, 1.0) is None
    full = worker_failure(RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. "), 2, 1.0)
    assert full is not None and "/dev/shm" in str(full)
