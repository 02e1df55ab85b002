"""Finds the image files under a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from starfire_cli.data.source import Files
from starfire_cli.errors import StarfireError

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")


_LEFT_BEHIND = ("Thumbs.db", "desktop.ini")


def is_image(name: str) -> bool:
    """Whether a file name has an image's extension; hidden files (and macOS's `._photo.jpg`) do not count."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted as ImageFolder sorts classes."""
    with _entries(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not _ignored(e.name))


def count_ignored(folder: Path) -> dict[str, int]:
    """Counts files in `folder` itself that are no images, by extension."""
    others: dict[str, int] = {}
    with _entries(folder) as entries:
        for entry in entries:
            if entry.is_file() and not is_image(entry.name):
                _count(entry.name, others)
    return others


def ignored_text(others: Mapping[str, int], most: int = 5) -> str:
    """`passed over: 12 .heic, 3 .txt`; empty where there were none."""
    ordered = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{count:,} {ending or 'without extension'}" for ending, count in ordered[:most]]
    if len(ordered) > most:
        shown.append(f"{sum(count for _, count in ordered[most:]):,} others")
    return f"passed over: {', '.join(shown)}" if shown else ""


def count_loose_images(folder: Path) -> int:
    """The number of images directly in `folder`."""
    with _entries(folder) as entries:
        return sum(is_image(e.name) for e in entries)


def images_below(folder: Path) -> list[str]:
    """Names of all images under `folder`, relative to it, sorted; symbolic links are followed, loops are not."""
    return sorted(walk(folder))


def walk(folder: Path) -> Iterator[str]:
    """As `images_below`, in directory order."""
    return _walk(*_start(folder), [], {})


def class_files(root: Path, folders: Sequence[str]) -> tuple[Files, list[bytes]]:
    """The images of class folders; class number c is `folders[c]`. And every folder that was read, from `root` on."""
    names: list[bytes] = []
    counts, visited = [], []
    others: dict[str, int] = {}
    for folder in folders:
        before = len(names)
        below: list[str] = []
        names += sorted(os.fsencode(f"{folder}/{name}") for name in _walk(*_start(root / folder), below, others))
        counts.append(len(names) - before)
        visited += [os.fsencode(f"{folder}/{inner}" if inner else folder) for inner in below]
    labels = np.repeat(np.arange(len(folders)), counts)
    return Files(root=root, names=np.array(names, dtype=np.bytes_), labels=labels, others=others), visited


def _entries(folder: Path | str) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(folder)
    except OSError as error:  # it may not be read, or a network drive is gone
        raise StarfireError(f"--data: {folder} cannot be read ({error.strerror})") from None


def _ignored(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "__pycache__", "@eaDir")


def _count(name: str, others: dict[str, int]) -> None:
    """Counts a file that is no image; hidden files and those of operating systems are left out."""
    if not name.startswith(".") and name not in _LEFT_BEHIND:
        ending = os.path.splitext(name)[1].lower()
        others[ending] = others.get(ending, 0) + 1


def _readable(entry: os.DirEntry[str]) -> bool:
    """Whether reading the file ends: not a pipe or a device. A dangling link counts; reading reports it."""
    return entry.is_file() or not os.path.exists(entry.path)


def _start(folder: Path) -> tuple[str, str, tuple[str, ...]]:
    return str(folder), "", (os.path.realpath(folder),)


def _walk(root: str, below: str, above: tuple[str, ...], visited: list[str], others: dict[str, int]) -> Iterator[str]:
    visited.append(below)
    with _entries(os.path.join(root, below)) as entries:
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                loops = real in above or above[0].startswith(real + os.sep)
                if not loops and not _ignored(entry.name):
                    yield from _walk(root, name, (*above, real), visited, others)
            elif is_image(entry.name) and _readable(entry):
                yield name
            else:
                _count(entry.name, others)
