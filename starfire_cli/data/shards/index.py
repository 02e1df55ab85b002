"""The index of a set of shards that `starfire data pack` wrote.

The files are described in docs/shards.md. The index comes from a file, so nothing in it is believed unchecked: names
are plain file names, numbers fit the files.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from starfire_cli import damage
from starfire_cli.damage import Damaged
from starfire_cli.data import cache
from starfire_cli.data.augment import AUGMENTATIONS
from starfire_cli.data.draws import Ints
from starfire_cli.data.shards import remote
from starfire_cli.data.shards.layout import Shards
from starfire_cli.data.shards.members import BLOCK
from starfire_cli.data.shards.spool import Spool
from starfire_cli.data.source import Source, Stats
from starfire_cli.errors import BadOption, StarfireError

INDEX, FORMAT, VERSION = "index.json", "starfire-shards", 1
MEMBER = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4"), ("key", "<i4")])
LONGEST_INDEX = 2**28  # bytes that are taken from a server for an index
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(tar|members\.npy)")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file: its name, its images, its bytes and their SHA-256 in hex."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PackedPart:
    """One part: its shards, and the file with each image's position in them, with its SHA-256."""

    members: str
    sha256: str
    shards: tuple[Shard, ...]

    @property
    def images(self) -> int:
        """The number of images in all shards."""
        return sum(shard.images for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Index:
    """The contents of index.json.

    Args:
        name: what the set was called that was packed (`imagenet`, `folder`).
        side: the longer side in pixels of one of its images.
    """

    name: str
    side: int
    classes: tuple[str, ...]
    augment: str | None
    stats: Stats | None
    parts: Mapping[str, PackedPart]


def is_packed(path: Path) -> bool:
    """Whether a folder has an index of ours. Looks at its beginning only."""
    try:
        if not (path / INDEX).is_file():
            return False
        with open(path / INDEX, "rb") as file:
            return FORMAT.encode() in file.read(200)
    except OSError:
        return False


def index_of(base: Path | str) -> Index:
    """The index in a folder, or behind a folder's URL. Raises StarfireError, DamagedFile for anything else."""
    content = remote.read_url(f"{base}/{INDEX}", LONGEST_INDEX) if isinstance(base, str) else None
    with damage.reading(f"--data {base}: {INDEX}"):
        return parsed(json.loads((Path(base) / INDEX).read_bytes() if content is None else content))


def parsed(content: Any) -> Index:
    """The index in `content`. Raises Damaged or another exception for anything else: see `damage.reading`."""
    if content["format"] != FORMAT:
        raise Damaged(f"format {content['format']!r}")
    if content["version"] != VERSION:
        raise Damaged(f"version {content['version']!r}; this starfire reads version {VERSION}")
    parts = {name: _part(content["parts"][name]) for name in ("train", "val") if name in content["parts"]}
    if "train" not in parts or not parts["train"].images:
        raise Damaged("no training part")
    if not isinstance(content["classes"], list) or not all(isinstance(name, str) for name in content["classes"]):
        raise Damaged("classes must be a list of names")
    augment = content.get("augment")
    if augment is not None:
        try:
            AUGMENTATIONS.build(augment)
        except BadOption as error:
            raise Damaged(str(error)) from None
    stats = content.get("stats")
    return Index(
        name=str(content["name"]),
        side=_whole(content["side"]),
        classes=tuple(content["classes"]),
        augment=augment,
        stats=None if stats is None else _stats(stats),
        parts=parts,
    )


def _part(part: Any) -> PackedPart:
    shards = []
    for given in part["shards"]:
        shard = Shard(
            name=_plain(given["name"]),
            images=_whole(given["images"]),
            bytes=_whole(given["bytes"]),
            sha256=_hex(given["sha256"]),
        )
        if shard.images * 2 * BLOCK > shard.bytes:  # an image and its class have a header each
            raise Damaged(f"{shard.images} images in the {shard.bytes} bytes of {shard.name}")
        shards.append(shard)
    return PackedPart(members=_plain(part["members"]), sha256=_hex(part["sha256"]), shards=tuple(shards))


def source(base: Path | str, index: Index) -> Source:
    """The set whose index lies in a folder, or behind a URL. Raises StarfireError for what does not fit the index."""
    val = index.parts.get("val")
    return Source(
        name="webdataset",
        path=base if isinstance(base, Path) else None,
        url=None if isinstance(base, Path) else base,
        classes=index.classes,
        list_train=lambda: _shards(base, index.parts["train"], len(index.classes)),
        val=None if val is None else _shards(base, val, len(index.classes)),
        augment=index.augment,
        stats=index.stats,
    )


def _shards(base: Path | str, part: PackedPart, classes: int) -> Shards:
    if isinstance(base, Path):
        for shard in part.shards:
            _same_length(base / shard.name, shard)
    content = _members(base, part)
    with damage.reading(f"--data {base}: {part.members}"):
        members = records(content, part.images)
    counts, lengths = ([getattr(shard, key) for shard in part.shards] for key in ("images", "bytes"))
    number, bytes_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts), np.array(lengths, dtype=np.int64)
    if (members["label"] < 0).any() or (members["label"] >= classes).any():
        raise StarfireError(f"--data {base}: {part.members} does not fit {INDEX}; pack the set again")
    offset, size = members["offset"].copy(), members["size"].copy()
    if not inside(offset, size, bytes_of[number]):
        raise StarfireError(f"--data {base}: {part.members} names bytes outside its shards; pack the set again")
    if isinstance(base, Path):
        places = tuple(str(base / shard.name) for shard in part.shards)
        spool = None
    else:
        places = tuple(f"{base}/{shard.name}" for shard in part.shards)
        spool = spool_for(places, lengths, [shard.sha256 for shard in part.shards])
    return Shards(
        places=places,
        lengths=bytes_of,
        shard=number,
        offset=offset,
        size=size,
        labels=members["label"].astype(np.int64),
        spool=spool,
    )


def records(content: bytes, images: int) -> npt.NDArray[np.void]:
    """(images,) what a members' file holds, of dtype MEMBER; nothing is allocated but what is there.

    Raises Damaged or another exception where it holds something else: see `damage.reading`.
    """
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise Damaged("not the version of NumPy's format that was written")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != MEMBER or shape != (images,) or len(content) - file.tell() != images * MEMBER.itemsize:
        raise Damaged(f"it does not fit {INDEX}, which names {images} images; pack the set again")
    return np.ndarray(shape, MEMBER, content, file.tell())


def inside(offset: Ints, size: Ints, length: Ints) -> bool:
    """(N,) each: whether all members lie behind a header and inside their shards, whose lengths are given."""
    return bool(((offset >= BLOCK) & (offset <= length) & (size >= 0) & (size <= length - offset)).all())


def spool_for(urls: tuple[str, ...], lengths: list[int], checksums: list[str]) -> Spool:
    """The spool for those shards on this machine."""
    import tempfile

    place = cache.folder() or Path(tempfile.gettempdir(), "starfire")
    known = hashlib.blake2b("\n".join((*urls, *checksums)).encode(), digest_size=12).hexdigest()
    folder = place / "shards" / known
    return Spool(folder=folder, urls=urls, lengths=tuple(lengths), checksums=tuple(checksums))


def _members(base: Path | str, part: PackedPart) -> bytes:
    if isinstance(base, str):
        content = remote.read_url(f"{base}/{part.members}", part.images * MEMBER.itemsize + 2**16)
    else:
        try:
            if not (base / part.members).is_file():
                raise FileNotFoundError(errno.ENOENT, "no such file")
            content = (base / part.members).read_bytes()
        except OSError as error:
            raise StarfireError(f"--data {base}: {part.members} cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise StarfireError(f"--data {base}: {part.members} is damaged (its checksum differs); pack the set again")
    return content


def _same_length(path: Path, shard: Shard) -> None:
    try:
        length = path.stat().st_size
    except OSError as error:
        raise StarfireError(f"--data {path.parent}: shard {path.name} is missing ({error.strerror})") from None
    if length != shard.bytes:
        raise StarfireError(
            f"--data {path.parent}: shard {path.name} has {length:,} bytes where {INDEX} says {shard.bytes:,}; "
            "it was cut off or replaced: copy it again, or pack the set again"
        )


def _plain(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Damaged(f"{reprlib.repr(name)} is no name of a shard")
    return name


def _hex(text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise Damaged(f"{reprlib.repr(text)} is no SHA-256")
    return text


def _whole(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**62:
        raise Damaged(f"{reprlib.repr(number)} is no number of images, bytes or pixels")
    return number


def _stats(given: Any) -> Stats:
    mean, std = ((float(red), float(green), float(blue)) for red, green, blue in given)
    if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
        raise Damaged(f"mean {mean} and standard deviation {std} cannot be")
    return mean, std
