"""The record of a checkpoint as read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from starfire_cli.formats.checkpoint.meta import Meta
from starfire_cli.pruning.masks import Masks


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights, masks and metadata.

    Args:
        path: the file it came from.
        format: "starfire", "torch", "torch-legacy", "safetensors", "sharded" or "packed".
        state: a plain state dict in the file's order, on the CPU; files that allow it are mapped, not read.
        masks: True where a weight is alive, by state-dict key; None where the file holds none.
        meta: what `train` and `prune-mask` write down; empty for files of others.
        training: optimizer, scheduler, era and so on, only if asked for.
        notes: what had to be done to read it (a prefix stripped, masks folded in), for people.
        digest_matches: whether the masks are those of the digest that was written with them.
        parts: of weights in `state` that the file holds reparametrised, by the weight's key; see `reparametrised`.
    """

    path: Path
    format: str
    state: dict[str, Tensor]
    masks: Masks | None
    meta: Meta = field(default_factory=Meta)
    training: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    digest_matches: bool = True
    parts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
