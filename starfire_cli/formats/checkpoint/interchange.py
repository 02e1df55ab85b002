"""Writes formats of other tools: plain safetensors, the keys of `torch.nn.utils.prune`, and sparse bitmasks.

These are larger than our own file, and none but `prune` keeps masks apart from zeros (docs/compress.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.formats.atomic import atomic_write
from starfire_cli.pruning.ties import distinct, masks_once, ties_of

State = Mapping[str, Tensor]
_BITMASK = ("shape", "compressed", "bitmask", "row_offsets")


def write_safetensors(path: Path, state: State, masks: State) -> None:
    """A plain safetensors file: dense tensors, zeros where weights are dead.

    Of tied tensors the first is in the file; the metadata say which other names it has, as in files of
    `safetensors.torch.save_model`.
    """
    _save(path, dict(state), {"format": "pt"})


def write_prune(path: Path, state: State, masks: State) -> None:
    """A torch file whose state dict a model under `torch.nn.utils.prune` loads: X_orig and X_mask for each masked X."""
    ties = ties_of(state)
    masks = masks_once(masks, ties, distinct(state))
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        owner = ties.get(key, key)
        if owner in masks:
            result[f"{key}_orig"] = tensor
            result[f"{key}_mask"] = masks[owner].to(tensor.dtype) if owner == key else result[f"{owner}_mask"]
        else:
            result[key] = tensor
    with atomic_write(path, need=sum(t.nbytes for t in distinct(result).values())) as file:
        torch.save(result, file)


def write_bitmask(path: Path, state: State, masks: State) -> None:
    """The "sparse-bitmask" layout of compressed-tensors: X.compressed, X.bitmask, X.row_offsets, X.shape.

    Bits run along the last axis and start a new byte with each row, so that R x S kernels take S of every 8 bits.
    """
    ties = ties_of(state)
    masks = masks_once(masks, ties, distinct(state))
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        owner = ties.get(key, key)
        if owner not in masks:
            result[key] = tensor
            continue
        if owner != key:
            result |= {f"{key}.{part}": result[f"{owner}.{part}"] for part in _BITMASK}
            continue
        alive = masks[key].cpu()
        rows = alive.reshape(alive.shape[0], -1).sum(1)
        result[f"{key}.shape"] = torch.tensor(alive.shape)
        result[f"{key}.compressed"] = tensor.cpu()[alive]
        result[f"{key}.bitmask"] = torch.from_numpy(np.packbits(alive.numpy(), axis=-1, bitorder="little"))
        result[f"{key}.row_offsets"] = rows.cumsum(0) - rows
    _save(path, result, {"format": "pt", "sparsity_config": json.dumps({"format": "sparse-bitmask"})})


WRITERS: dict[str, tuple[str, Callable[[Path, State, State], None]]] = {
    "safetensors": (".dense.safetensors", write_safetensors),
    "prune": (".prune.pt", write_prune),
    "bitmask": (".bitmask.safetensors", write_bitmask),
}
"""By the name that --to takes: what the file's name ends in, and who writes it."""


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    dropped = {key: first for key, first in ties_of(tensors).items() if key not in metadata}
    metadata = metadata | dropped
    own = {k: tensor.detach().cpu().contiguous().clone() for k, tensor in tensors.items() if k not in dropped}
    try:
        data = safetensors.torch.save(own, metadata)
    except (ValueError, KeyError, TypeError) as error:
        raise StarfireError(f"{path} cannot be a safetensors file: {error}") from None
    with atomic_write(path, need=len(data)) as file:
        file.write(data)
