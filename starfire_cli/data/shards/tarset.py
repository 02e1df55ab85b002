"""The index of tar files that others made, built once and cached.

A sample is what shares a name up to the first dot, as everywhere in WebDatasets: `0017.jpg` and `0017.cls`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from torch import Tensor

from starfire_cli import damage
from starfire_cli.data import cache, scan
from starfire_cli.data.shards import index, members, remote
from starfire_cli.data.shards.layout import Shards
from starfire_cli.data.source import Source
from starfire_cli.errors import BadOption, StarfireError

VERSION = 1
VAL = re.compile(r"(^|[^a-z])(val|valid|validation|test)([^a-z]|$)", re.IGNORECASE)
_LABEL = "cls"
_CONNECTIONS = 8
_CLASSES = 100_000
_MOST_SHARDS = 1_000_000


class Listed(NamedTuple):
    """The contents of one shard: (n, 3) offset, size and label of each image; its length and SHA-256 ("" on a disk)."""

    rows: list[tuple[int, int, int]]
    length: int
    sha256: str


def only_tars(path: Path) -> bool:
    """Whether a folder has tar files, and no folders."""
    return not scan.subfolders(path) and any(p.suffix == ".tar" for p in path.iterdir())


def source(path: Path) -> Source:
    """The tar files in a folder; those called val, valid, validation or test are the validation part."""
    places = sorted(str(p) for p in path.iterdir() if p.suffix == ".tar" and p.is_file())
    if not places:
        raise StarfireError(f"--data webdataset:{path}: no .tar files there; `starfire data pack` makes some")
    return _source(places, path=path)


def source_of_urls(text: str) -> Source:
    """The tar files that `URL-{000..146}.tar::URL.tar` names. Raises BadOption, StarfireError."""
    for pattern in text.split("::"):
        remote.check_url(re.sub(r"\{[A-Za-z0-9.,-]*\}", "0", pattern))
    if _shards_meant(text) > _MOST_SHARDS:
        raise BadOption(f"--data {text}: that is more than {_MOST_SHARDS:,} shards; name fewer in the braces")
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise StarfireError(f"--data {text}: needs the webdataset package; pip install webdataset") from None
    return _source([remote.check_url(url) for url in expand_urls(text)], url=text)


def _shards_meant(text: str) -> int:
    """The number of URLs that the braces in `text` expand to, counted before any is made."""
    total = 0
    for pattern in text.split("::"):
        count = 1
        for inside in re.findall(r"\{([^{}]*)\}", pattern):
            numbers = re.fullmatch(r"(-?[0-9]+)\.\.(-?[0-9]+)(\.\..*)?", inside)
            count *= abs(int(numbers[2]) - int(numbers[1])) + 1 if numbers else max(26, inside.count(",") + 1)
        total += count
    return total


def _source(places: Sequence[str], *, path: Path | None = None, url: str | None = None) -> Source:
    validating = [place for place in places if VAL.search(os.path.basename(place))]
    training = [place for place in places if place not in validating]
    if not training:
        training, validating = validating, []
    train, val = _shards(training, url is not None), _shards(validating, url is not None) if validating else None
    count = 1 + max(int(part.labels.max()) for part in (train, val) if part is not None)
    return Source(
        name="webdataset",
        path=path,
        url=url,
        classes=tuple(str(number) for number in range(max(2, count))),
        list_train=lambda: train,
        val=val,
        augment="rrc-flip",
        notes=("the shards have no index of ours: classes are called by their numbers",),
    )


def _shards(places: Sequence[str], far: bool) -> Shards:
    import torch

    stamp = "" if far else "\n".join(f"{os.stat(p).st_size} {os.stat(p).st_mtime_ns}" for p in places)
    key = hashlib.blake2b(f"{VERSION} {stamp}\n{chr(10).join(places)}".encode(), digest_size=12).hexdigest()
    folder = cache.folder()
    file = None if folder is None else folder / cache.file_name(f"shards-{len(places)}", key, listing=True)
    kept = cache.read(file)
    if kept is None or not _fits(kept, len(places)):
        with ThreadPoolExecutor(_CONNECTIONS if far else 1) as pool:
            listed = list(pool.map(_remote if far else _local, places))
        rows = np.array([row for one in listed for row in one.rows], dtype=np.int64).reshape(-1, 3)
        counts = np.array([len(one.rows) for one in listed])
        arrays = {
            "rows": rows,
            "counts": counts,
            "lengths": np.array([one.length for one in listed]),
            "sums": np.array([list(bytes.fromhex(one.sha256 or "00" * 32)) for one in listed], dtype=np.uint8),
        }
        kept = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if file is not None:
            cache.write(file, kept)
    rows, counts, lengths = (kept[name].numpy() for name in ("rows", "counts", "lengths"))
    if not len(rows):
        raise StarfireError(f"--data webdataset: no image with a .{_LABEL} beside it in {places[0]}")
    sums = [bytes(row).hex() for row in kept["sums"].numpy()]
    return Shards(
        places=tuple(places),
        lengths=lengths,
        shard=np.repeat(np.arange(len(places), dtype=np.int32), counts),
        offset=rows[:, 0].copy(),
        size=rows[:, 1].copy(),
        labels=rows[:, 2].copy(),
        spool=index.spool_for(tuple(places), lengths.tolist(), sums) if far else None,
    )


def _fits(kept: dict[str, Tensor], places: int) -> bool:
    """Whether a cached listing matches the number of shards and names no bytes outside them."""
    try:
        rows, counts, lengths, sums = (kept[name].numpy() for name in ("rows", "counts", "lengths", "sums"))
        if any(array.dtype.kind not in "iu" for array in (rows, counts, lengths, sums)):
            return False
        each = counts.shape == lengths.shape == (places,) and sums.shape == (places, 32) and counts.sum() == len(rows)
        return (
            each and index.inside(rows[:, 0], rows[:, 1], np.repeat(lengths, counts)) and bool((rows[:, 2] >= 0).all())
        )
    except Exception:  # noqa: BLE001 - another version's: the shards are read again
        return False


def _local(place: str) -> Listed:
    with damage.reading(_called(place)), open(place, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        return Listed(_rows(place, file, length), length, "")


def _remote(url: str) -> Listed:
    with damage.reading(_called(url)), remote.open_url(url) as stream:
        summed = _Summed(stream)
        rows = _rows(url, summed, None)
        while summed.read(2**18):
            pass
    return Listed(rows, summed.length, summed.digest.hexdigest())


def _called(place: str) -> str:
    return f"--data: shard {place}"


def _rows(place: str, file: members.Readable, length: int | None) -> list[tuple[int, int, int]]:
    """Offset, size and label of each image. Raises Damaged for no tar file, StarfireError for one of something else."""
    found: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    for member in members.members(file, length):
        head, tail = os.path.split(member.name)
        key, _, ending = tail.partition(".")
        key = f"{head}/{key}"
        if ending.lower() == _LABEL:
            labels[key] = _label(place, key, member)
        elif scan.is_image(f"x.{ending}"):
            found.setdefault(key, (member.offset, member.size))
    without = next((key for key in found if key not in labels), None)
    if without is not None:
        raise StarfireError(f"{_called(place)}: {without.strip('/')} has no .{_LABEL} with its class number")
    return [(*where, labels[key]) for key, where in found.items()]


def _label(place: str, key: str, member: members.Member) -> int:
    text = member.start[:32]
    try:
        number = int(text)
    except ValueError:
        raise StarfireError(f"{_called(place)}: {key.strip('/')}.{_LABEL} is no whole number") from None
    if not 0 <= number < _CLASSES:
        raise StarfireError(f"{_called(place)}: class number {number} is not in 0 ... {_CLASSES - 1}")
    return number


class _Summed:
    """A stream that counts and hashes the bytes read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.length, self.digest = stream, 0, hashlib.sha256()

    def read(self, size: int) -> bytes:
        """The next bytes."""
        data = self._stream.read(size)
        self.length += len(data)
        self.digest.update(data)
        return data
