from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from starfire_cli.data import DataOptions, open_data
from starfire_cli.errors import BadOption, StarfireError
from tests.helpers.data_layouts import (
    CPU,
    cifar_batches,
    class_folders,
    mnist,
    options,
    picture,
    tiny_imagenet,
    train_and_val,
)


def refused(spec: object, *texts: str, **given: object) -> str:
    """Opening fails with one line that says all of `texts`."""
    with pytest.raises(StarfireError) as caught:
        _use(spec, **given)
    message = str(caught.value)
    assert "\n" not in message and all(text in message for text in texts), message
    return message


def _use(spec: object, **given: object) -> None:
    data = open_data(str(spec), options(**given))
    for split in (data.train, data.val):
        list(split.batches(0))


def test_a_place_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / "nothing", "there is no", "nothing")
    refused("cifar10:", "path after the colon")
    refused("folder", "folder:PATH")
    refused("digits:/tmp", "take no path")
    refused("tiny_imagenet", "'tiny_imagenet'", "Did you mean 'tiny-imagenet'")
    (tmp_path / "set.zip").write_bytes(b"PK")
    refused(tmp_path / "set.zip", "is a file; unpack it")
    for name in ("cifar10", "cifar100", "mnist", "fashion-mnist", "tiny-imagenet", "imagenet"):
        refused(name, f"there is no datasets/{name}", "nothing is downloaded", f"{name}:PATH")


def test_folders_without_images_or_classes(tmp_path: Path) -> None:
    refused(tmp_path, "no class folders and no images", "PATH/train/CLASS/*.jpg")
    picture(0).save(tmp_path / "a.png")
    refused(tmp_path, "1 images but no class folders")
    (tmp_path / "empty").mkdir()
    (tmp_path / "void").mkdir()
    refused(tmp_path, "no image in any of its folders (empty, void)")
    class_folders(tmp_path, ("cat",), 3)
    shutil.rmtree(tmp_path / "void")
    refused(tmp_path, "no image in class folder empty", ".jpg")
    (tmp_path / "empty").rmdir()
    refused(tmp_path, "only one class folder (cat)")


def test_parts_that_do_not_fit_together(tmp_path: Path) -> None:
    train_and_val(tmp_path)
    class_folders(tmp_path / "val", ("eel",), 2)
    refused(tmp_path, "train/ and val/ must have the same classes", "only in val/: eel")
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "fox")
    refused(tmp_path, "only in train/: dog", "only in val/: eel, fox")
    shutil.rmtree(tmp_path / "val" / "eel")
    (tmp_path / "val" / "fox").rename(tmp_path / "val" / "dog")
    for file in (tmp_path / "val" / "dog").iterdir():
        file.unlink()
    refused(tmp_path, "no image in class folder dog")
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").mkdir()
    picture(0).save(tmp_path / "val" / "a.png")
    refused(tmp_path, "val: 1 images but no class folders")
    shutil.rmtree(tmp_path / "train")
    refused(tmp_path, "there is val/ but no train/")


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_and_val(tmp_path)
    original = os.scandir

    def scandir(path: str) -> object:  # root may read everything, and tests often run as root
        if "dog" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr("os.scandir", scandir)
    refused(tmp_path, "cannot be read (Permission denied)", "dog")


def test_too_few_images(tmp_path: Path) -> None:
    train_and_val(tmp_path, train=3)
    refused(tmp_path, "--batch-size 7 is more than the 6 training images", "--batch-size 6 or less works", batch_size=7)
    flat = class_folders(tmp_path / "flat", ("a", "b"), 3)
    (flat / "a" / "000.png").unlink()
    (flat / "a" / "001.png").unlink()
    refused(flat, "class 'a' has one image")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"batch_size": 0}, "--batch-size 0"),
        ({"eval_batch_size": -1}, "--eval-batch-size -1"),
        ({"image_size": 0}, "--image-size 0"),
        ({"workers": -1}, "--workers -1"),
    ],
)
def test_options_without_meaning(given: dict[str, int], text: str) -> None:
    with pytest.raises(BadOption, match=text):
        DataOptions(device=CPU, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"val_fraction": 1.0}, "--val-fraction 1 "),
        ({"limit_train": 0}, "--limit-train 0"),
        ({"limit_val": -2}, "--limit-val -2"),
        ({"augment": "colour"}, "augmentation 'colour'"),
    ],
)
def test_options_without_meaning_here(given: dict[str, object], text: str) -> None:
    with pytest.raises(BadOption, match=text):
        open_data("digits", options(**given))


def test_an_augmentation_for_small_images_only(tmp_path: Path) -> None:
    train_and_val(tmp_path, size=(100, 100))
    refused(tmp_path, "'affine' works on small images only", "rrc-flip", augment="affine")
    refused(tmp_path, "cutout works on small images only", augment="crop-flip:cutout=8")


def damage(file: Path, how: str) -> None:
    if how == "text":
        file.write_text("this is no image")
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    elif how == "gone":
        file.unlink()
        file.symlink_to("nowhere.png")
    else:
        Image.fromarray(np.zeros((20, 20), dtype=np.float32)).save(file, format="TIFF")


DAMAGES = {
    "text": "cannot identify",
    "empty": "cannot identify",
    "cut": "truncated",
    "gone": "No such file",
    "float": "32 bits",
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("side", [40, 120])
def test_a_corrupt_image_is_named_or_skipped_and_counted(tmp_path: Path, how: str, suffix: str, side: int) -> None:
    train_and_val(tmp_path, size=(side, side), suffix=suffix)
    bad = tmp_path / "train" / "dog" / f"003{suffix}"
    damage(bad, how)
    refused(tmp_path, f"corrupt image {bad}", DAMAGES[how], "--skip-corrupt", image_size=32)
    data = open_data(str(tmp_path), options(skip_corrupt=True, image_size=32))
    labels = torch.cat([labels for _, labels in data.train.batches(0)])
    assert torch.bincount(labels).tolist() == [10, 9] and data.train.skipped == 1 and data.val.skipped == 0
    list(data.train.batches(1))
    assert data.train.skipped == 1
    if side == 40:  # found when they were all decoded
        assert len(data.train) == data.info.train_images == 19
        assert "left out as corrupt: 1" in data.info.notes[0] and str(bad) in data.info.notes[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_by_workers_too(tmp_path: Path, workers: int) -> None:
    train_and_val(tmp_path, size=(120, 120), suffix=".jpg")
    bad = tmp_path / "val" / "cat" / "002.jpg"
    damage(bad, "cut")
    refused(tmp_path, f"corrupt image {bad}", image_size=32, workers=workers)


def test_a_set_of_nothing_but_corrupt_images(tmp_path: Path) -> None:
    for size in (20, 120):
        root = train_and_val(tmp_path / str(size), size=(size, size))
        for file in (root / "train").rglob("*.png"):
            damage(file, "cut" if size == 120 else "text")
        refused(root, "corrupt image", skip_corrupt=True)


def test_tiny_imagenets_that_are_not_whole(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    table = tmp_path / "val" / "val_annotations.txt"
    whole = table.read_text()
    table.write_text(whole.replace("n01", "n07"))
    refused(tmp_path, "classes that are not in train/: n07")
    table.write_text("val_0.JPEG n01\n")
    refused(tmp_path, "image name, tab, WordNet id")
    table.write_text(whole)
    (tmp_path / "val" / "images" / "val_2.JPEG").unlink()
    refused(tmp_path, "missing: val_2.JPEG")
    table.unlink()
    refused(tmp_path, "train/ and val/ must have the same classes")
    shutil.rmtree(tmp_path / "train")
    refused(f"tiny-imagenet:{tmp_path}", "no train/ there (seen: val)")


def test_torchvisions_sets_that_are_not_whole(tmp_path: Path) -> None:
    refused(f"cifar10:{tmp_path}", "no sound cifar-10-batches-py/", "unpack")
    cifar_batches(tmp_path / "cifar-10-batches-py")  # not the published bytes
    refused(tmp_path, "no sound cifar-10-batches-py/", "differ")
    refused(f"cifar100:{tmp_path}", "no sound cifar-100-python/")
    raw = mnist(tmp_path / "MNIST" / "raw")
    refused(tmp_path, "several data sets", f"--data mnist:{tmp_path}")
    labels = raw / "t10k-labels-idx1-ubyte"
    labels.rename(raw / "t10k-labels-idx1-ubyte.gz")
    refused(f"mnist:{tmp_path}", "t10k-labels-idx1-ubyte not found", "gunzip")
    shutil.copy(raw / "train-labels-idx1-ubyte", labels)
    refused(f"mnist:{tmp_path}", "do not belong together")
    labels.write_bytes(b"\0\0\x08\x01")
    refused(f"mnist:{tmp_path}", "damaged")


def test_imagenets_that_are_not_whole(tmp_path: Path) -> None:
    refused(f"imagenet:{tmp_path}", "train/ and val/ are expected", "no folders")
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    refused(f"imagenet:{tmp_path}", "ILSVRC2012_img_train.tar", "unpack")
    inner = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    class_folders(inner / "train", ("n00000001", "n00000002"), 2)
    (inner / "val").mkdir()
    picture(0).save(inner / "val" / "v1.png")
    table = tmp_path / "LOC_val_solution.csv"
    table.write_text("ImageId,PredictionString\nv1,n00000009 1 2 3 4\n")
    refused(f"imagenet:{tmp_path}", "classes not in train/: n00000009")
    table.write_text("ImageId,Label\nv1,n00000001\n")
    refused(f"imagenet:{tmp_path}", "columns ImageId and PredictionString")
    table.write_text("ImageId,PredictionString\nv1,n00000001 1 2 3 4\nv2,n00000002 1 2 3 4\n")
    refused(f"imagenet:{tmp_path}", "2 labels do not fit", "1 images")
