"""ImageNet (ILSVRC 2012): 1.28 million images in 1000 classes, in torchvision's layout or as Kaggle distributes it."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from starfire_cli import damage
from starfire_cli.data import scan
from starfire_cli.data.sets import SETS, _default_folders, folder
from starfire_cli.data.sets.tiny_imagenet import class_names, disambiguate
from starfire_cli.data.source import Files, Source
from starfire_cli.data.statistics import IMAGENET
from starfire_cli.errors import StarfireError

WNID = re.compile(r"n\d{8}")
SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")


@SETS.register("imagenet")
@dataclass(frozen=True)
class ImageNet:
    """train/WNID/*.JPEG and val/WNID/*.JPEG; or ILSVRC/Data/CLS-LOC with LOC_val_solution.csv."""

    def recognises(self, path: Path) -> bool:
        """1000 folders named like WordNet ids in train/."""
        train = next((p for p in (path / "train", path / KAGGLE / "train") if p.is_dir()), None)
        return train is not None and sum(bool(WNID.fullmatch(n)) for n in scan.subfolders(train)) == 1000

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """Classes in the order of their WordNet ids. Raises StarfireError where the layout is another."""
        path = _default_folders.find_folder("imagenet", path, "train/WNID/*.JPEG and val/WNID/*.JPEG")
        inner = path / KAGGLE if (path / KAGGLE).is_dir() else path
        if not (inner / "train").is_dir() or not (inner / "val").is_dir():
            raise StarfireError(f"--data imagenet:{path}: train/ and val/ are expected there; {_seen(path)}")
        wnids = folder.class_names(inner / "train")
        if (path / SOLUTION).is_file() and not scan.subfolders(inner / "val"):
            val = read_solution(path / SOLUTION, inner / "val", wnids)
        else:
            val = folder.read_matching(inner / "val", wnids, inner / "train")
        names = class_names(path / "words.txt", wnids)
        if (path / MAPPING).is_file():
            names = read_class_names(path / MAPPING, wnids)
        return Source(
            name="imagenet",
            path=path,
            classes=names,
            list_train=partial(folder.read_classes, inner / "train", wnids),
            val=val,
            augment="rrc-flip",
            stats=IMAGENET,
        )


def _seen(path: Path) -> str:
    archives = sorted(p.name for p in path.glob("ILSVRC2012_img_*.tar"))
    if archives:
        return (
            f"seen: {', '.join(archives)}; torchvision.datasets.ImageNet({str(path)!r}, split='train') and split='val' "
            "unpack them (with ILSVRC2012_devkit_t12.tar.gz beside)"
        )
    return f"seen: {folder.listed(scan.subfolders(path)) or 'no folders'}"


def read_solution(table: Path, val: Path, wnids: Sequence[str]) -> Files:
    """Kaggle's flat val/ with the labels of its csv file. Raises StarfireError where those disagree."""
    number = {wnid: c for c, wnid in enumerate(wnids)}
    with damage.reading(table), table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        try:
            label = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
        except (KeyError, IndexError, AttributeError):
            raise StarfireError(f"{table}: columns ImageId and PredictionString are expected in every row") from None
    strangers = sorted(set(label.values()) - set(wnids))
    names = [n for n in scan.images_below(val) if n.rpartition(".")[0] in label]
    if strangers or len(names) != len(label):
        problem = f"classes not in train/: {folder.listed(strangers)}" if strangers else f"{len(names)} images"
        raise StarfireError(f"{table}: {len(label)} labels do not fit {val}: {problem}")
    labels = np.array([number[label[n.rpartition(".")[0]]] for n in names], dtype=np.int64)
    return Files(root=val, names=np.array([os.fsencode(n) for n in names], dtype=np.bytes_), labels=labels)


def read_class_names(table: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """Class names from Kaggle's `n01440764 tench, Tinca tinca`."""
    with damage.reading(table):
        lines = table.read_text("utf-8", errors="replace").splitlines()
    words = dict(line.split(" ", 1) for line in lines if " " in line)
    names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return disambiguate(names, wnids)
