"""Reads safetensors files, single or sharded by an index."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from starfire_cli.damage import reading
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint import torch_file, unwrap
from starfire_cli.formats.checkpoint.names import utf8_name
from starfire_cli.pruning.ties import ties_of
from starfire_cli.text import by_number

_ABOUT_THE_FILE = ("format",)  # metadata that never name a tensor


def load(path: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of a "safetensors" file, mapped, or of a "sharded" one by its index. Raises StarfireError.

    A safetensors file keeps its tensors by type and name, not in the model's order; they come sorted by name with
    numbers counted as numbers.
    """
    if kind == "safetensors":
        return _load_one(path)
    with reading(path):
        index = json.loads(path.read_bytes())
        weight_map = index["weight_map"]
    if not isinstance(weight_map, dict) or not weight_map:
        raise StarfireError(f"{path}: its weight_map is not a map of tensor names to files")
    shards: dict[str, dict[str, Tensor]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise StarfireError(f"{path} names a shard {name!r}; shards lie beside their index")
        if name not in shards:
            shards[name] = _load_shard(path, name)
        if key not in shards[name]:
            raise StarfireError(f"{path}: {key} should be in {name}, which does not hold it")
    tensors = {key: shards[name][key] for key, name in weight_map.items()}
    for shard in shards.values():
        tensors |= {key: shard[key] for key, first in ties_of(shard).items() if key not in tensors and first in tensors}
    tensors |= {key: tensors[kept] for key, kept in _dropped(index.get("metadata"), tensors).items()}
    return {key: tensors[key] for key in sorted(tensors, key=by_number)}


def _load_shard(index: Path, name: str) -> dict[str, Tensor]:
    """One file that the index names: safetensors or torch's."""
    shard = index.with_name(name)
    if not shard.exists():
        raise StarfireError(f"{index} names the shard {name}, which is not beside it")
    kind = torch_file.sniff(shard)
    if kind == "safetensors":
        return _load_one(shard)
    if kind not in ("torch", "torch-legacy"):
        raise StarfireError(f"{index} names the shard {name}, which is a {kind} file")
    return unwrap.shard_state(torch_file.load(shard, kind), shard)


def _load_one(path: Path) -> dict[str, Tensor]:
    with reading(path), utf8_name(path) as name, safe_open(str(name), framework="pt") as file:
        tensors = dict(zip(file.keys(), map(file.get_tensor, file.keys()), strict=True))
        tensors |= {key: tensors[kept] for key, kept in _dropped(file.metadata(), tensors).items()}
        return {key: tensors[key] for key in sorted(tensors, key=by_number)}


def _dropped(metadata: object, tensors: Collection[str]) -> dict[str, str]:
    """Further names of tied tensors -> the name in the file, as `safetensors.torch.save_model` notes them down."""
    return {
        key: kept
        for key, kept in (metadata if isinstance(metadata, dict) else {}).items()
        if isinstance(kept, str) and kept in tensors and key not in tensors and key not in _ABOUT_THE_FILE
    }
