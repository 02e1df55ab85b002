"""Tiny-ImageNet as it is distributed: 100,000 images of 64 x 64 pixels, validation labels in a text file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from starfire_cli import damage
from starfire_cli.data import scan
from starfire_cli.data.sets import SETS, _default_folders, folder
from starfire_cli.data.source import Files, Source, Stats
from starfire_cli.errors import StarfireError

STATS: Stats = ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))


@SETS.register("tiny-imagenet")
@dataclass(frozen=True)
class TinyImageNet:
    """train/WNID/images/*.JPEG, val/images/*.JPEG with val/val_annotations.txt, words.txt for the names."""

    def recognises(self, path: Path) -> bool:
        """wnids.txt beside train/ and val/."""
        return (path / "wnids.txt").is_file() and (path / "train").is_dir() and (path / "val").is_dir()

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """Classes in the order of their WordNet ids. Raises StarfireError where the layout is another."""
        path = _default_folders.find_folder("tiny-imagenet", path, "the content of tiny-imagenet-200.zip")
        if not (path / "train").is_dir():
            seen = folder.listed(scan.subfolders(path)) or "no folders"
            raise StarfireError(
                f"--data tiny-imagenet:{path}: no train/ there (seen: {seen}); "
                "give the folder that has train/, val/ and wnids.txt"
            )
        wnids = folder.class_names(path / "train")
        if (path / "val" / "val_annotations.txt").is_file():
            val = read_annotations(path / "val", wnids)
        else:  # many sort it into class folders
            val = folder.read_matching(path / "val", wnids, path / "train")
        return Source(
            name="tiny-imagenet",
            path=path,
            classes=class_names(path / "words.txt", wnids),
            list_train=partial(folder.read_classes, path / "train", wnids, expected=(".txt",)),
            val=val,
            augment="rrc-flip",
            stats=STATS,
        )


def read_annotations(val: Path, wnids: Sequence[str]) -> Files:
    """The validation images and the labels in val_annotations.txt. Raises StarfireError where those disagree."""
    number = {wnid: c for c, wnid in enumerate(wnids)}
    table = val / "val_annotations.txt"
    with damage.reading(table):
        lines = table.read_text("utf-8", errors="surrogateescape").splitlines()
    rows = [line.split("\t")[:2] for line in lines if line.strip()]
    unreadable = [row for row in rows if len(row) < 2]
    if unreadable or not rows:
        raise StarfireError(
            f"{table}: lines of image name, tab, WordNet id are expected, seen: {unreadable[:1] or 'none'}"
        )
    strangers = sorted({wnid for _, wnid in rows} - set(wnids))
    if strangers:
        raise StarfireError(f"{table}: classes that are not in train/: {folder.listed(strangers)}")
    present = set(scan.images_below(val / "images")) if (val / "images").is_dir() else set()
    missing = [name for name, _ in rows if name not in present]
    if missing:
        raise StarfireError(f"{val / 'images'}: images named in {table.name} are missing: {folder.listed(missing)}")
    rows.sort()
    return Files(
        root=val / "images",
        names=np.array([os.fsencode(name) for name, _ in rows], dtype=np.bytes_),
        labels=np.array([number[wnid] for _, wnid in rows], dtype=np.int64),
    )


def class_names(words: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """The first word for each id; the id itself where there is none, and beside the word where two share it."""
    meaning: dict[str, str] = {}
    if words.is_file():
        with damage.reading(words):
            lines = [line.split("\t", 1) for line in words.read_text("utf-8", errors="replace").splitlines()]
        meaning = {pair[0]: pair[1].split(",")[0].strip() for pair in lines if len(pair) == 2}
    return disambiguate([meaning.get(wnid) or wnid for wnid in wnids], wnids)


def disambiguate(names: Sequence[str], wnids: Sequence[str]) -> tuple[str, ...]:
    """The names, with the id behind those that several classes have."""
    counts = Counter(names)
    return tuple(n if counts[n] == 1 else f"{n} ({wnid})" for n, wnid in zip(names, wnids, strict=True))
