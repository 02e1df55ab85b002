"""Records of `starfire data pack`: its plan, each shard, and the finished set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PackingStarted:
    """A data set that is about to be packed into shards.

    Args:
        source: the spec that finds it.
        images: of each part.
        shards: how many it makes in all; `there` of them an earlier packing has left.
    """

    source: str
    images: dict[str, int]
    shards: int
    there: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PackingPart:
    """Progress by one shard: its name, the images packed so far, and images a second."""

    images: int
    shard: str
    per_second: float


@dataclass(frozen=True, kw_only=True)
class PackedData:
    """A data set in shards.

    Args:
        images: of each part, without those left out.
        bytes: of all shards.
        skipped: images left out as corrupt, each with the reason.
    """

    out: Path
    images: dict[str, int]
    shards: int
    bytes: int
    skipped: tuple[str, ...]
    seconds: float
