"""A folder of class folders: train/ and val/, or one folder of which a seeded share is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from starfire_cli.data import listing, scan
from starfire_cli.data.sets import SETS
from starfire_cli.data.source import Files, Source
from starfire_cli.errors import BadOption, StarfireError

HELD_OUT = ("val", "valid", "validation", "test")
LAYOUTS = (
    "what works: PATH/train/CLASS/*.jpg with PATH/val/CLASS/*.jpg (or valid, validation, test), "
    "or PATH/CLASS/*.jpg (a seeded share is held out)"
)


@SETS.register("folder")
@dataclass(frozen=True)
class Folder:
    """Any images, sorted into one folder a class."""

    def recognises(self, path: Path) -> bool:
        """False: it is the fallback for folders that no other set recognises."""
        return False

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """Lists the images. Raises StarfireError that describes the folder where its layout is not known."""
        if path is None:
            raise BadOption("--data folder: say which: --data folder:PATH")
        path, notes = unwrapped(path)
        part = next((name for name in HELD_OUT if (path / name).is_dir()), None)
        train = path / "train" if (path / "train").is_dir() else path
        if part is not None and train == path:
            raise StarfireError(f"--data {path}: there is {part}/ but no train/; {LAYOUTS}")
        classes = class_names(train)
        val = None
        if part is not None:
            val = read_matching(path / part, classes, train)
            notes += ("test/ serves as the validation part",) if part == "test" else ()
        elif train != path:
            notes += ("there is train/ but no val/: a share of train/ is held out",)
        listing = partial(read_classes, train, classes)
        return Source(name="folder", path=path, classes=classes, list_train=listing, val=val, notes=notes)


def unwrapped(path: Path) -> tuple[Path, tuple[str, ...]]:
    """`path`, or the one folder in it where only that has train/: archives often unpack to NAME/NAME."""
    names = scan.subfolders(path)
    if len(names) == 1 and names[0] != "train" and (path / names[0] / "train").is_dir():
        return path / names[0], (f"the data is in {path / names[0]}",)
    return path, ()


def class_names(folder: Path) -> tuple[str, ...]:
    """The class folders in `folder`. Raises StarfireError where there are fewer than two."""
    names = scan.subfolders(folder)
    if not names:
        loose = scan.count_loose_images(folder)
        seen = f"{loose} images but no class folders" if loose else "no class folders and no images"
        seen += _passed(scan.count_ignored(folder))
        raise StarfireError(f"--data {folder}: {seen}; {LAYOUTS}")
    if len(names) == 1:
        raise StarfireError(f"--data {folder}: only one class folder ({names[0]}), two or more are needed; {LAYOUTS}")
    return tuple(names)


def _passed(others: Mapping[str, int]) -> str:
    text = scan.ignored_text(others)
    return f" ({text})" if text else ""


def read_classes(folder: Path, names: Sequence[str], *, expected: Sequence[str] = ()) -> Files:
    """The images in those class folders. Raises StarfireError that names the classes without images.

    Other files are counted, but for those with `expected` extensions.
    """
    files = listing.class_files(folder, names)
    if not len(files):
        seen = f"no image in any of its folders ({listed(names)}){_passed(files.others)}"
        raise StarfireError(f"--data {folder}: {seen}; {LAYOUTS}")
    counts = np.bincount(files.labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        raise StarfireError(
            f"--data {folder}: no image in class folder {listed(empty)}{_passed(files.others)}; add some or remove the "
            f"folder (images end in {' '.join(scan.EXTENSIONS)})"
        )
    return replace(files, others={ending: count for ending, count in files.others.items() if ending not in expected})


def read_matching(folder: Path, classes: tuple[str, ...], train: Path) -> Files:
    """The images of the validation folder. Raises StarfireError that lists how its classes differ from `train`'s."""
    names = scan.subfolders(folder)
    if not names and scan.count_loose_images(folder):
        raise StarfireError(
            f"--data {folder}: {scan.count_loose_images(folder)} images but no class folders; {LAYOUTS}"
        )
    if tuple(names) != classes:
        raise StarfireError(
            f"--data {train.parent}: {differences(classes, names, train.name + '/', folder.name + '/')}"
        )
    return read_classes(folder, names)


def differences(first: Sequence[str], second: Sequence[str], first_name: str, second_name: str) -> str:
    """The differences of two sets of classes, in words."""
    only = ((first_name, sorted(set(first) - set(second))), (second_name, sorted(set(second) - set(first))))
    parts = [f"only in {where}: {listed(names)}" for where, names in only if names]
    parts = parts or ["they are in another order"]
    return f"{first_name} and {second_name} must have the same classes; {'; '.join(parts)}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """`a, b, c and 12 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
