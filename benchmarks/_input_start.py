"""Times the listing of a folder of very many images: the first time, the second time, and by torchvision."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torchvision
from PIL import Image

from starfire_cli.data import cache, listing
from starfire_cli.data.sets.folder import class_names

CLASSES = 1000


def make(root: Path, count: int) -> None:
    """`count` names of JPEGs in 1000 class folders: one file a class, the others hard links to it."""
    for c in range(CLASSES):
        folder = root / f"n{c:08d}"
        folder.mkdir(parents=True)
        first = folder / f"n{c:08d}_0.JPEG"
        Image.new("RGB", (500, 400), (c % 256, 77, 9)).save(first)
        for i in range(1, count // CLASSES):
            os.link(first, folder / f"n{c:08d}_{i}.JPEG")


def listing_times(root: Path, repeat: int) -> dict[str, Any]:
    """Seconds to list the folder."""
    make_sure = time.time() - max(p.stat().st_ctime for p in (root, *root.iterdir()))
    time.sleep(max(0.0, listing.SETTLED + 0.5 - make_sure))  # what was changed just now is not remembered

    def ours() -> int:
        return len(listing.class_files(root, class_names(root)))

    def forget() -> None:
        place = cache.folder()
        for file in place.glob("*.listing.safetensors") if place else ():
            file.unlink()

    result: dict[str, Any] = {"images": ours()}
    result["first_seconds"] = min(_timed(ours, forget) for _ in range(repeat))
    result["again_seconds"] = min(_timed(ours) for _ in range(repeat))
    result["torchvision_ImageFolder_seconds"] = min(
        _timed(lambda: len(torchvision.datasets.ImageFolder(str(root)))) for _ in range(repeat)
    )
    place = cache.folder()
    result["remembered_bytes"] = sum(f.stat().st_size for f in place.glob("*.listing.safetensors")) if place else 0
    return result


def _timed(run: Callable[[], object], before: Callable[[], None] = lambda: None) -> float:
    before()
    started = time.perf_counter()
    run()
    return round(time.perf_counter() - started, 3)
