from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from starfire_cli.data import SETS, Data, open_data, recognise
from starfire_cli.data.finding import find
from starfire_cli.data.images.input_pipeline import SMALL
from starfire_cli.data.sets.digits import load
from starfire_cli.data.source import Files
from tests.helpers.data_layouts import (
    cifar_batches,
    class_folders,
    mnist,
    options,
    picture,
    tiny_imagenet,
    train_and_val,
)


def shown(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """Validation images as bytes, and their labels."""
    batches = list(data.val.batches(0))
    return torch.cat([x for x, _ in batches]).mul(255).round().to(torch.uint8), torch.cat([y for _, y in batches])


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    grey, labels = load()
    theirs = load_digits()
    assert np.array_equal(grey, theirs.images) and np.array_equal(labels, theirs.target)
    data = open_data("digits", options(augment="none", image_size=8, batch_size=2))
    assert len(data.train) + len(data.val) == 1797 and len(data.val) == pytest.approx(360, abs=5)
    images, numbers = shown(data)
    by_pixels = {
        (image * 255 / 16).round().astype(np.uint8).tobytes(): t for image, t in zip(grey, labels, strict=True)
    }
    for image, number in zip(images, numbers.tolist(), strict=True):
        assert by_pixels[image[0].numpy().tobytes()] == number and torch.equal(image[0], image[2])
    assert open_data("digits", options()).info.image_size == 16


def test_digits_do_not_wait_for_torchvision_or_scikit_learn() -> None:
    import subprocess

    code = (
        "import sys; from starfire_cli.data import open_data, DataOptions; next(open_data('digits', DataOptions())"
        ".train.batches(0)); print(sorted({'torchvision', 'sklearn', 'PIL', 'timm'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("part", ["val", "valid", "validation", "test"])
def test_class_folders_with_a_validation_part(tmp_path: Path, part: str) -> None:
    train_and_val(tmp_path)
    (tmp_path / "val").rename(tmp_path / part)
    data = open_data(str(tmp_path), options(augment="none"))
    assert (data.info.name, data.info.classes, len(data.train), len(data.val)) == ("folder", ("cat", "dog"), 20, 8)
    images, labels = shown(data)
    assert labels.tolist() == [0] * 4 + [1] * 4
    for i, (folder, name) in enumerate((c, n) for c in ("cat", "dog") for n in range(4)):
        with Image.open(tmp_path / part / folder / f"{name:03d}.png") as image:
            assert np.array_equal(images[i].permute(1, 2, 0).numpy(), np.asarray(image))
    assert ("test/ serves as the validation part" in data.info.notes) == (part == "test")


def test_what_users_have_in_their_folders_does_not_matter(tmp_path: Path) -> None:
    train_and_val(tmp_path / "set")
    clean = find(str(tmp_path / "set"))
    for folder in ("", "train", "train/cat", "val", "val/dog"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png", "readme.txt", "labels.csv"):
            (tmp_path / "set" / folder / name).write_bytes(b"\0\1")
        for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
            (tmp_path / "set" / folder / name).mkdir()
            (tmp_path / "set" / folder / name / "000.png").write_bytes(b"\0\1")
    littered = find(str(tmp_path / "set"))
    for before, after in ((clean.train, littered.train), (clean.val, littered.val)):
        assert isinstance(before, Files) and isinstance(after, Files)
        assert before.names.tolist() == after.names.tolist() and before.labels.tolist() == after.labels.tolist()


def test_nested_folders_links_and_odd_names_are_followed(tmp_path: Path) -> None:
    train_and_val(tmp_path / "set")
    store = class_folders(tmp_path / "store", ("more",), 3)
    cat = tmp_path / "set" / "train" / "cat"
    (cat / "deep" / "er").mkdir(parents=True)
    for name in ("X.PNG", "ünïcode 猫.Png", "two words.JPEG", "a.b.c.jpg"):
        picture(1).save(cat / "deep" / "er" / name, format="PNG" if name.lower().endswith("png") else "JPEG")
    os.symlink(store / "more", cat / "linked")
    os.symlink(store / "more" / "000.png", cat / "link.png")
    os.symlink(cat, cat / "loop")
    os.symlink(tmp_path / "set" / "train", cat / "deep" / "up")
    data = open_data(str(tmp_path / "set"), options())
    names = find(str(tmp_path / "set")).train
    assert isinstance(names, Files)
    cats = [n.decode() for n in names.names[names.labels == 0]]
    assert sum("linked" in n for n in cats) == 3 and "cat/link.png" in cats and "cat/deep/er/ünïcode 猫.Png" in cats
    assert not any("loop" in n or "up/" in n for n in cats) and len(cats) == 10 + 4 + 3 + 1
    assert len(data.train) == len(names)


def test_an_archive_that_unpacked_into_itself(tmp_path: Path) -> None:
    train_and_val(tmp_path / "pets" / "pets")
    data = open_data(str(tmp_path / "pets"), options())
    assert len(data.train) == 20 and "pets/pets" in data.info.notes[0]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "transparent"])
def test_all_kinds_of_images_become_three_channels(tmp_path: Path, mode: str) -> None:
    train_and_val(tmp_path)
    file = tmp_path / "val" / "cat" / "000.png"
    original = picture(77)
    expected = np.asarray(original.convert("L").convert("RGB"))
    if mode == "I;16":
        Image.fromarray(np.asarray(original.convert("L")).astype(np.uint16) * 256 + 7).save(file)
    elif mode == "transparent":
        palette = original.convert("P")
        palette.save(file, transparency=bytes(range(256)))
        expected = np.asarray(palette.convert("RGB"))
    else:
        converted = original.convert(mode)
        file = file.with_suffix(".jpg") if mode == "CMYK" else file
        (tmp_path / "val" / "cat" / "000.png").unlink()
        converted.save(file, quality=100) if mode == "CMYK" else converted.save(file)
        with Image.open(file) as again:
            expected = np.asarray(again.convert("RGB"))
    image = shown(open_data(str(tmp_path), options(augment="none")))[0][0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("large", [False, True])
def test_photographs_stand_upright(tmp_path: Path, large: bool) -> None:
    side, suffix = (120, ".jpg") if large else (20, ".png")
    train_and_val(tmp_path, size=(side, side), suffix=suffix)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    file = tmp_path / "val" / "cat" / f"000{suffix}"
    lying = picture(1, side, side)
    lying.save(file, exif=exif)
    turned = shown(open_data(str(tmp_path), options(augment="none", image_size=side)))[0][0].permute(1, 2, 0).numpy()
    upright = np.rot90(np.asarray(lying), -1)
    if large:  # validation cuts the centre out of the enlarged image
        assert np.corrcoef(turned.ravel(), upright.ravel())[0, 1] > 0.5
        assert np.corrcoef(turned.ravel(), np.asarray(lying).ravel())[0, 1] < 0.5
    else:
        assert np.array_equal(turned, upright)


def test_mixed_sizes_are_cut_to_squares_of_one_size(tmp_path: Path) -> None:
    train_and_val(tmp_path)
    picture(5, 30, 60).save(tmp_path / "train" / "cat" / "wide.png")
    picture(6, 61, 31).save(tmp_path / "train" / "dog" / "tall.png")
    data = open_data(str(tmp_path), options())
    assert data.info.stored == data.info.image_size == 20 and next(data.train.batches(0))[0].shape[2:] == (20, 20)
    assert open_data(str(tmp_path), options(image_size=24)).info.stored == 24


def test_large_images_go_through_workers_and_small_ones_stay(tmp_path: Path) -> None:
    train_and_val(tmp_path / "small", size=(SMALL, SMALL - 20))
    assert open_data(str(tmp_path / "small"), options()).info.stored == SMALL - 20
    train_and_val(tmp_path / "large", size=(SMALL, SMALL + 1))
    info = open_data(str(tmp_path / "large"), options()).info
    assert (info.stored, info.image_size, info.resize, info.augment) == (None, 224, 256, "rrc-flip")


def test_tiny_imagenet_as_it_is_distributed(tmp_path: Path) -> None:
    data = open_data(str(tiny_imagenet(tmp_path)), options(augment="none"))
    assert (data.info.name, data.info.image_size) == ("tiny-imagenet", 64)
    assert data.info.classes == ("crane (n01)", "crane (n02)", "n03")  # two cranes, and a word that is missing
    assert shown(data)[1].tolist() == [2, 0, 1, 2, 0, 1]
    with Image.open(tmp_path / "val" / "images" / "val_1.JPEG") as image:
        assert np.array_equal(shown(data)[0][1].permute(1, 2, 0).numpy(), np.asarray(image))
    assert open_data(f"tiny-imagenet:{tmp_path}", options()).info.augment == "rrc-flip"


def test_tiny_imagenet_with_validation_sorted_into_folders(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    for line in (tmp_path / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        (tmp_path / "val" / wnid).mkdir(exist_ok=True)
        (tmp_path / "val" / "images" / name).rename(tmp_path / "val" / wnid / name)
    (tmp_path / "val" / "val_annotations.txt").unlink()
    (tmp_path / "val" / "images").rmdir()
    assert shown(open_data(str(tmp_path), options()))[1].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("place", ["MNIST/raw", "FashionMNIST/raw"])
def test_mnist_and_fashion_mnist(tmp_path: Path, place: str) -> None:
    raw = mnist(tmp_path / place)
    name = "mnist" if place.startswith("M") else "fashion-mnist"
    for spec in (str(tmp_path), str(raw.parent), f"{name}:{raw}"):
        data = open_data(spec, options())
        assert (data.info.name, data.info.image_size, len(data.train), len(data.val)) == (name, 28, 30, 10)
    images, labels = shown(data)
    pixels = np.frombuffer((raw / "t10k-images-idx3-ubyte").read_bytes()[16:], dtype=np.uint8).reshape(10, 28, 28)
    assert labels.tolist() == list(range(10)) and np.array_equal(images[:, 1].numpy(), pixels)
    assert "flip" not in data.info.augment or name == "fashion-mnist"


def test_cifar10_as_torchvision_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    folder = tmp_path / "cifar-10-batches-py"
    content = cifar_batches(folder)
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in [*content, "batches.meta"]}
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[n, sums[n]] for n in content if n != "test_batch"])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    for spec in (str(tmp_path), str(folder), f"cifar10:{tmp_path}"):
        data = open_data(spec, options())
        assert (data.info.name, len(data.train), len(data.val), data.info.augment) == ("cifar10", 50, 10, "crop-flip")
    images, labels = shown(data)
    assert np.array_equal(images.numpy(), content["test_batch"].reshape(10, 3, 32, 32))
    assert labels.tolist() == list(range(10)) and data.info.classes[9] == "truck"


def test_cifar10_sorted_into_class_folders_is_known_by_its_names(tmp_path: Path) -> None:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    train_and_val(tmp_path, names, train=2, val=1, size=(32, 32))
    (tmp_path / "val").rename(tmp_path / "test")
    assert recognise(str(tmp_path)) == ("cifar10", None)
    assert open_data(str(tmp_path), options()).info.name == "cifar10"


def imagenet(root: Path, train: str, val: str) -> list[str]:
    """A thousand classes with one (linked) image each."""
    picture(0, 100, 130).save(root / "one.JPEG")
    wnids = [f"n{i:08d}" for i in range(1000)]
    for part in (train, val):
        for wnid in wnids:
            (root / part / wnid).mkdir(parents=True)
            os.symlink(root / "one.JPEG", root / part / wnid / "one.JPEG")
    return wnids


def test_imagenet_in_torchvisions_layout(tmp_path: Path) -> None:
    imagenet(tmp_path, "train", "val")
    data = open_data(str(tmp_path), options(image_size=32))
    assert (data.info.name, len(data.info.classes), data.info.augment, data.info.resize) == (
        "imagenet",
        1000,
        "rrc-flip",
        37,
    )
    assert data.info.mean == (0.485, 0.456, 0.406) and len(data.val) == 1000


def test_imagenet_as_kaggle_has_it(tmp_path: Path) -> None:
    inner = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    inner.mkdir(parents=True)
    (tmp_path / "one.JPEG").touch()
    wnids = imagenet(inner, "train", "was-val")
    (inner / "val").mkdir()
    rows = ["ImageId,PredictionString"]
    for i in range(6):
        os.symlink(inner / "one.JPEG", inner / "val" / f"ILSVRC2012_val_{i}.JPEG")
        rows.append(f"ILSVRC2012_val_{i},{wnids[i * 7]} 1 2 3 4 {wnids[i * 7]} 1 2 3 4 ")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows))
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        f"{wnids[0]} tench, Tinca tinca\n{wnids[1]} crane\n{wnids[2]} crane\n"
    )
    source = find(str(tmp_path))
    assert source.name == "imagenet" and source.val is not None and source.val.labels.tolist() == [0, 7, 14, 21, 28, 35]
    assert source.classes[:4] == ("tench", f"crane ({wnids[1]})", f"crane ({wnids[2]})", wnids[3])


def test_a_named_set_is_looked_for_in_its_usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_imagenet(tmp_path / "datasets" / "tiny-imagenet")
    assert open_data("tiny-imagenet", options()).info.spec == f"tiny-imagenet:{tmp_path / 'datasets' / 'tiny-imagenet'}"
    monkeypatch.setenv("STARFIRE_DATA", str(tmp_path / "elsewhere"))
    tiny_imagenet(tmp_path / "elsewhere" / "tiny-imagenet")
    assert "elsewhere" in open_data("tiny-imagenet", options()).info.spec


@pytest.mark.parametrize(
    ("classes", "grey", "size", "augment"),
    [
        (("0", "1"), True, 28, "affine"),
        (("A", "b"), True, 150, "rrc-flip:scale=0.5,flip=0.0"),
        (("0", "1"), False, 28, "crop-flip"),
        (("00", "01"), True, 28, "crop-flip"),
        (("cat", "dog"), False, 64, "rrc-flip"),
    ],
)
def test_auto_mirrors_neither_digits_nor_letters(
    tmp_path: Path, classes: tuple[str, ...], grey: bool, size: int, augment: str
) -> None:
    for part in ("train", "val"):
        for c, name in enumerate(classes):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                image = picture(10 * c + i, size, size)
                (image.convert("L") if grey else image).save(tmp_path / part / name / f"{i}.png")
    assert open_data(str(tmp_path), options()).info.augment == augment


@pytest.mark.parametrize("name", SETS.names())
def test_every_set_says_whether_it_recognises_a_folder(name: str, tmp_path: Path) -> None:
    assert SETS.build(name).recognises(tmp_path) is False


def test_recognise_reads_one_image_and_no_more(tmp_path: Path) -> None:
    train_and_val(tmp_path, size=(40, 50))
    (tmp_path / "train" / "cat" / "000.png").write_bytes(b"broken")
    assert recognise(str(tmp_path)) == ("folder", 50) and recognise("digits") == ("digits", None)


def test_mean_and_std_are_those_of_the_training_images(tmp_path: Path) -> None:
    train_and_val(tmp_path)
    info = open_data(str(tmp_path), options()).info
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "train").rglob("*.png"))]) / 255
    assert info.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-6)
    assert info.std == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-6)
