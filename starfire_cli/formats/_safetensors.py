"""What is in a safetensors file, or in the many files that an index names."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from starfire_cli.damage import reading
from starfire_cli.errors import StarfireError
from starfire_cli.formats import _torch_file, _unwrap
from starfire_cli.formats._names import utf8_name
from starfire_cli.text import by_number


def load(path: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of a "safetensors" file, mapped, or of a "sharded" one by its index. Raises StarfireError.

    A safetensors file keeps its tensors by type and name, not in the model's order; they come sorted by name with
    numbers counted as numbers.
    """
    if kind == "safetensors":
        return _load_one(path)
    with reading(path):
        weight_map = json.loads(path.read_bytes())["weight_map"]
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
    return {key: shards[weight_map[key]][key] for key in sorted(weight_map, key=by_number)}


def _load_shard(index: Path, name: str) -> dict[str, Tensor]:
    """One file that the index names: safetensors or torch's."""
    shard = index.with_name(name)
    if not shard.exists():
        raise StarfireError(f"{index} names the shard {name}, which is not beside it")
    kind = _torch_file.sniff(shard)
    if kind == "safetensors":
        return _load_one(shard)
    if kind not in ("torch", "torch-legacy"):
        raise StarfireError(f"{index} names the shard {name}, which is a {kind} file")
    return _unwrap.shard_state(_torch_file.load(shard, kind), shard)


def _load_one(path: Path) -> dict[str, Tensor]:
    with reading(path), utf8_name(path) as name, safe_open(str(name), framework="pt") as file:
        return {key: file.get_tensor(key) for key in sorted(file.keys(), key=by_number)}
