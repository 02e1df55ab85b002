"""A folder of class folders: train/ and val/, or one folder of which a seeded share is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from starfire_cli.data import scan
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
        """Never: it is what any folder is taken for when no other set recognises it."""
        return False

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """List the images. Raises StarfireError that says what was seen where the layout is none of the known."""
        if path is None:
            raise BadOption("--data folder: say which: --data folder:PATH")
        path, notes = unwrapped(path)
        part = next((name for name in HELD_OUT if (path / name).is_dir()), None)
        if not (path / "train").is_dir():
            if part is not None:
                raise StarfireError(f"--data {path}: there is {part}/ but no train/; {LAYOUTS}")
            classes, train = read_classes(path)
            return Source(name="folder", path=path, classes=classes, train=train, val=None, notes=notes)
        classes, train = read_classes(path / "train")
        if part is None:
            notes = (*notes, "there is train/ but no val/: a share of train/ is held out")
            return Source(name="folder", path=path, classes=classes, train=train, val=None, notes=notes)
        if part == "test":
            notes = (*notes, "test/ serves as the validation part")
        val = read_matching(path / part, classes, path / "train")
        return Source(name="folder", path=path, classes=classes, train=train, val=val, notes=notes)


def unwrapped(path: Path) -> tuple[Path, tuple[str, ...]]:
    """`path`, or the one folder in it where only that has train/: archives often unpack to NAME/NAME."""
    names = scan.subfolders(path)
    if len(names) == 1 and names[0] != "train" and (path / names[0] / "train").is_dir():
        return path / names[0], (f"the data is in {path / names[0]}",)
    return path, ()


def read_classes(folder: Path) -> tuple[tuple[str, ...], Files]:
    """Class names and images of a folder of class folders. Raises StarfireError: none, one class, an empty class."""
    names = scan.subfolders(folder)
    if not names:
        loose = scan.loose_images(folder)
        seen = f"{loose} images but no class folders" if loose else "no class folders and no images"
        raise StarfireError(f"--data {folder}: {seen}; {LAYOUTS}")
    files = scan.class_files(folder, names)
    if not len(files):
        raise StarfireError(f"--data {folder}: no image in any of its folders ({listed(names)}); {LAYOUTS}")
    if len(names) == 1:
        raise StarfireError(f"--data {folder}: only one class folder ({names[0]}), two or more are needed; {LAYOUTS}")
    refuse_empty(folder, names, files)
    return tuple(names), files


def read_matching(folder: Path, classes: tuple[str, ...], train: Path) -> Files:
    """The images of the validation folder. Raises StarfireError that lists how its classes differ from `train`'s."""
    names = scan.subfolders(folder)
    if not names and scan.loose_images(folder):
        raise StarfireError(f"--data {folder}: {scan.loose_images(folder)} images but no class folders; {LAYOUTS}")
    if tuple(names) != classes:
        raise StarfireError(
            f"--data {train.parent}: {differences(classes, names, train.name + '/', folder.name + '/')}"
        )
    files = scan.class_files(folder, names)
    refuse_empty(folder, names, files)
    return files


def refuse_empty(folder: Path, names: Sequence[str], files: Files) -> None:
    """Raise StarfireError that names the classes without images."""
    counts = np.bincount(files.labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        raise StarfireError(
            f"--data {folder}: no image in class folder {listed(empty)}; add some or remove the folder "
            f"(images end in {' '.join(scan.EXTENSIONS)})"
        )


def differences(first: Sequence[str], second: Sequence[str], first_name: str, second_name: str) -> str:
    """How two sets of classes differ, in words."""
    only = ((first_name, sorted(set(first) - set(second))), (second_name, sorted(set(second) - set(first))))
    parts = [f"only in {where}: {listed(names)}" for where, names in only if names]
    parts = parts or ["they are in another order"]
    return f"{first_name} and {second_name} must have the same classes; {'; '.join(parts)}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """`a, b, c and 12 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
