"""Decodes a set of small images once, in parallel, and caches the pixels on disk."""

from __future__ import annotations

import dataclasses
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from starfire_cli.data import cache
from starfire_cli.data.images.input_pipeline import SMALL
from starfire_cli.data.images.stream import corrupt_image_error
from starfire_cli.data.images.workers import ImageReader, decode_requests
from starfire_cli.data.options import DataOptions
from starfire_cli.data.shards.readahead import ReadAhead
from starfire_cli.data.source import Encoded, Pixels
from starfire_cli.errors import StarfireError

AT_ONCE = 256
WORTH_WORKERS = 2000  # below, starting processes takes longer than it saves


def decoded(files: Encoded, side: int, options: DataOptions) -> tuple[Pixels, int, tuple[str, ...]]:
    """All images of `files` as squares of `side` pixels, the number of corrupt ones left out, and notes.

    Raises:
        StarfireError: a corrupt image, unless they are to be skipped; a dead or silent worker.
    """
    key = cache.cache_file(files, side)
    remembered = cache.load(key, len(files), side)
    if remembered is not None:
        return Pixels(images=remembered, labels=files.labels), 0, ()
    images, failures = read_all(ImageReader(files=files, out=side, resize=side), options)
    if not failures:
        return Pixels(images=images, labels=files.labels), 0, tuple(cache.save(key, images))
    good = np.ones(len(files), dtype=np.bool_)
    good[[position for position, _ in failures]] = False
    position, reason = failures[0]
    note = f"left out as corrupt: {len(failures)}, the first is {files.where(position)} ({reason})"
    return Pixels(images=images, labels=files.labels[good]), len(failures), (note,)


def read_all(reader: ImageReader, options: DataOptions) -> tuple[Tensor, list[tuple[int, str]]]:
    """Every image that can be decoded, in order, and position and reason of those that cannot. Raises as `decoded`."""
    count = len(reader.files)
    images = torch.empty((count, 3, reader.out, reader.out), dtype=torch.uint8)
    requests = [(0, np.arange(s, min(s + AT_ONCE, count))) for s in range(0, count, AT_ONCE)]
    workers = options.workers if count >= WORTH_WORKERS or reader.out > SMALL else 0
    failures: list[tuple[int, str]] = []
    done = 0
    here = dataclasses.replace(options, device=torch.device("cpu"))
    reading = ReadAhead(reader.files, requests)
    with closing(decode_requests(reader, requests, here, workers, reading.begin)) as answers:
        for answer in reading.through(answers):
            if answer.failures and not options.skip_corrupt:
                position, reason = answer.failures[0]
                raise corrupt_image_error(reader.files.where(position), reason)
            images[done : done + len(answer.images)] = answer.images
            failures += answer.failures
            done += len(answer.images)
            if options.progress:
                options.progress("decoding", done + len(failures), count)
    if not done:
        position, reason = failures[0]
        raise StarfireError(
            f"corrupt image {reader.files.where(position)} ({reason}), and so are all {count} of its part"
        )
    return images[:done], failures
