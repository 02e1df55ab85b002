"""Small data sets on disk, in the layouts that users have; every image can be told from every other."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from starfire_cli.data import DataOptions

CPU = torch.device("cpu")


def picture(seed: int, height: int = 20, width: int = 20) -> Image.Image:
    """A smooth picture with some texture, so that JPEG keeps it and scaling matters."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def class_folders(
    root: Path,
    classes: Sequence[str],
    each: int,
    *,
    size: tuple[int, int] = (20, 20),
    suffix: str = ".png",
    seed: int = 0,
) -> Path:
    """`each` images in each class folder of `root`."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            picture(seed + 1000 * c + i, *size).save(root / name / f"{i:03d}{suffix}")
    return root


def train_and_val(
    root: Path, classes: Sequence[str] = ("cat", "dog"), train: int = 10, val: int = 4, **how: object
) -> Path:
    """The usual layout: train/ and val/ with the same classes."""
    class_folders(root / "train", classes, train, **how)  # type: ignore[arg-type]
    class_folders(root / "val", classes, val, seed=500, **how)  # type: ignore[arg-type]
    return root


def tiny_imagenet(root: Path) -> Path:
    """Three classes, as Tiny-ImageNet is distributed."""
    wnids = ["n03", "n01", "n02"]
    for c, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("a box\n")
        for i in range(4):
            picture(10 * c + i, 64, 64).save(folder / f"{wnid}_{i}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for i in range(6):
        picture(100 + i, 64, 64).save(root / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{wnids[i % 3]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "words.txt").write_text("n01\tcrane, bird\nn02\tcrane\nn09\tunused\n")
    return root


def idx(path: Path, values: npt.NDArray[np.int64]) -> None:
    """A file in the format of MNIST."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + b"".join(struct.pack(">I", n) for n in values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def mnist(raw: Path, train: int = 30, test: int = 10) -> Path:
    """The four files of MNIST."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return raw


def cifar_batches(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """The files of CIFAR-10's python archive, ten images each (their MD5 sums are not the published ones)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    content = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content[name] = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": content[name], "labels": list(range(10))}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return content


def options(**given: object) -> DataOptions:
    """Options for small sets: batches of four, nothing decoded by processes unless asked for."""
    return DataOptions(**({"batch_size": 4, "workers": 0, "device": CPU} | given))  # type: ignore[arg-type]
