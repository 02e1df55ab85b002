"""What does a set of shards consist of that `starfire data pack` wrote?

The files are described in docs/shards.md. The index comes from a file, so nothing in it is believed unchecked: names
are plain file names, numbers fit the files.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starfire_cli.data import cache, remote
from starfire_cli.data.shards import Shards
from starfire_cli.data.source import Source, Stats
from starfire_cli.data.spool import Spool
from starfire_cli.errors import StarfireError

INDEX, FORMAT, VERSION = "index.json", "starfire-shards", 1
MEMBER = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4"), ("key", "<i4")])
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
    """One part: its shards, and the file that says where in them each image lies, with its SHA-256."""

    members: str
    sha256: str
    shards: tuple[Shard, ...]

    @property
    def images(self) -> int:
        """In all shards."""
        return sum(shard.images for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Index:
    """What index.json says.

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
        with open(path / INDEX, "rb") as file:
            return FORMAT.encode() in file.read(200)
    except OSError:
        return False


def parsed(content: Any) -> Index:
    """The index in `content`. Raises ValueError, KeyError or TypeError where it is something else."""
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}")
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}; this starfire reads version {VERSION}")
    parts = {}
    for name in ("train", "val"):
        if name in content["parts"]:
            part = content["parts"][name]
            shards = tuple(
                Shard(name=_plain(s["name"]), images=int(s["images"]), bytes=int(s["bytes"]), sha256=_hex(s["sha256"]))
                for s in part["shards"]
            )
            parts[name] = PackedPart(members=_plain(part["members"]), sha256=_hex(part["sha256"]), shards=shards)
    if "train" not in parts or not parts["train"].images:
        raise ValueError("no training part")
    stats = content.get("stats")
    return Index(
        name=str(content["name"]),
        side=int(content["side"]),
        classes=tuple(str(name) for name in content["classes"]),
        augment=None if content.get("augment") is None else str(content["augment"]),
        stats=None if stats is None else (_three(stats[0]), _three(stats[1])),
        parts=parts,
    )


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
    content = _members(base, part)
    members = np.load(io.BytesIO(content), allow_pickle=False)
    counts, lengths = ([getattr(shard, key) for shard in part.shards] for key in ("images", "bytes"))
    number, bytes_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts), np.array(lengths, dtype=np.int64)
    whole = members.dtype == MEMBER and len(members) == part.images
    if not whole or (members["label"] < 0).any() or (members["label"] >= classes).any():
        raise StarfireError(f"--data {base}: {part.members} does not fit {INDEX}; pack the set again")
    offset, size = members["offset"].copy(), members["size"].copy()
    if (offset < 512).any() or (size < 0).any() or (offset + size > bytes_of[number]).any():
        raise StarfireError(f"--data {base}: {part.members} names bytes outside its shards; pack the set again")
    if isinstance(base, Path):
        places = tuple(str(base / shard.name) for shard in part.shards)
        for place, shard in zip(places, part.shards, strict=True):
            _same_length(Path(place), shard)
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


def spool_for(urls: tuple[str, ...], lengths: list[int], checksums: list[str]) -> Spool:
    """Where those shards come to lie on this machine."""
    import tempfile

    place = cache.folder() or Path(tempfile.gettempdir(), "starfire")
    known = hashlib.blake2b("\n".join((*urls, *checksums)).encode(), digest_size=12).hexdigest()
    folder = place / "shards" / known
    return Spool(folder=folder, urls=urls, lengths=tuple(lengths), checksums=tuple(checksums))


def _members(base: Path | str, part: PackedPart) -> bytes:
    if isinstance(base, str):
        content = remote.content(f"{base}/{part.members}")
    else:
        try:
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
        raise ValueError(f"{name!r} is no name of a shard")
    return name


def _hex(text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{text!r} is no SHA-256")
    return text


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
