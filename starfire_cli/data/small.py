"""Small images: decode all of them once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from starfire_cli.data import decode
from starfire_cli.data.options import DataOptions
from starfire_cli.data.source import Files, Part, Pixels
from starfire_cli.errors import StarfireError


def to_pixels(
    part: Part, name: str, options: DataOptions, stored: int | None
) -> tuple[Pixels, int, int, tuple[str, ...]]:
    """Pixels, the side they are stored at, corrupt images left out, notes."""
    if isinstance(part, Pixels):
        return part, part.images.shape[-1], 0, ()
    stored = stored or min(decode.size_of(part.path(0)))
    out = np.empty((len(part), 3, stored, stored), dtype=np.uint8)

    def one(position: int) -> str | None:
        try:
            out[position] = decode.square(decode.decode(part.path(position)), stored)
        except decode.Corrupt as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, options.workers)) as pool:
        problems = list(pool.map(one, range(len(part)), chunksize=64))
    bad = [i for i, problem in enumerate(problems) if problem]
    if bad and not options.skip_corrupt:
        raise StarfireError(
            f"corrupt image {part.path(bad[0])} ({problems[bad[0]]}); --skip-corrupt goes on without it"
        )
    pixels = Pixels(images=torch.from_numpy(out), labels=part.labels)
    if not bad:
        return pixels, stored, 0, ()
    keep = np.ones(len(part), dtype=np.bool_)
    keep[bad] = False
    return (
        pixels.take(keep),
        stored,
        len(bad),
        (f"{len(bad)} corrupt images left out, the first is {part.path(bad[0])}",),
    )
