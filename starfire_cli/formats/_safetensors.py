"""What is in a safetensors file, or in the many that an index names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from starfire_cli.errors import StarfireError


def load_any(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a "safetensors" file or a "sharded" one by its index. Raises StarfireError."""
    if kind == "safetensors":
        return _load_one(path)
    index = json.loads(path.read_bytes())
    weight_map = index["weight_map"]
    if not isinstance(weight_map, dict):
        raise StarfireError(f"{path}: its weight_map is not an object")
    shards: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Tensor] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise StarfireError(f"{path} names a shard {name!r}; shards lie beside their index")
        if name not in shards:
            shards[name] = _load_shard(path, name)
        if key not in shards[name]:
            raise StarfireError(f"{path}: {key} should be in {name}, which does not hold it")
        state[key] = shards[name][key]
    return state, {}


def _load_shard(index: Path, name: str) -> dict[str, Tensor]:
    shard = index.with_name(name)
    if not shard.is_file():
        raise StarfireError(f"{index} names the shard {name}, which is not beside it")
    if name.endswith(".safetensors"):
        return _load_one(shard)[0]
    from starfire_cli.formats import _torch_file, _unwrap

    return _unwrap.unwrap(_torch_file.load(shard, _torch_file.sniff(shard)), shard)[0]


def _load_one(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.offset_keys()}, {}
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError, OSError, MemoryError) as error:
        text = " ".join(str(error).split())[:200]
        raise StarfireError(f"{path} is a damaged safetensors file: {text}") from None
