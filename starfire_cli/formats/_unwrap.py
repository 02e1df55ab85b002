"""Which of the things in a loaded file are the weights: wrappers opened, prefixes stripped."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.formats._inert import is_module, module_state
from starfire_cli.pruning.ties import place

# In this order: what a training script resumes from comes before its averages.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
)
_PREFIXES = ("module.", "_orig_mod.")
_SMALL = 1 << 24  # bytes; below this nothing a file claims can hurt


def unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """(state dict, notes for people) from whatever a file held. Raises StarfireError where there are no weights."""
    found, notes = _find(content, path)
    state = plain_state(found, path)
    dropped = [repr(key) for key in found if key not in state]
    if dropped:
        notes.append(f"not tensors, left out: {', '.join(dropped[:4])}{', ...' if len(dropped) > 4 else ''}")
    state, stripped = _strip(state)
    return state, notes + stripped


def plain_state(found: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, dense; refused where they claim far more than is stored."""
    state: dict[str, Tensor] = {}
    made: dict[Hashable, Tensor] = {}  # names of one tensor stay so
    stored: dict[int, int] = {}
    claimed = 0
    for key, tensor in found.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta:
            raise StarfireError(f"{path}: {key} is a tensor without data (device meta)")
        bytes_here = tensor.numel() * tensor.element_size()
        claimed += bytes_here
        backing = _backing(tensor)
        stored.update(backing)
        # A view may repeat what it shows (expand); a few bytes then claim terabytes as soon as anything counts them.
        share = sum(backing.values()) if tensor.layout == torch.strided else 1000 * sum(backing.values())
        if bytes_here > max(share, _SMALL):
            raise StarfireError(f"{path}: {key} claims shape {tuple(tensor.shape)}, far more than the file holds")
        known = place(tensor) or id(tensor)
        if known not in made:
            made[known] = _plain(tensor)
        state[key] = made[known]
    if claimed > 1000 * sum(stored.values()) + _SMALL:
        raise StarfireError(f"{path}: its tensors claim {claimed} bytes, far more than the file holds")
    return state


def _plain(tensor: Tensor) -> Tensor:
    """Dense, with the values that are read in memory; the tensor itself where it is so already."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return (tensor.dequantize() if tensor.is_quantized else tensor).detach().resolve_conj().resolve_neg()


def _backing(tensor: Tensor) -> dict[int, int]:
    """What holds a tensor's data: address of each storage -> bytes."""
    if tensor.layout == torch.strided:
        parts = [tensor]
    elif tensor.layout == torch.sparse_coo:
        parts = [tensor._values()]
    else:
        parts = [tensor.values()]
    return {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}


def _find(content: Any, path: Path) -> tuple[dict[Any, Any], list[str]]:
    """The dict that holds the tensors, down to three wrappers deep, and how it was reached."""
    inside: list[str] = []
    also: list[str] = []
    for _ in range(4):
        if is_module(content):
            return module_state(content), [
                *_reached(inside, also),
                "read from a whole pickled model, of which no code was run",
            ]
        if not isinstance(content, dict):
            break
        holders = [key for key, value in content.items() if isinstance(key, str) and _holds_tensors(value)]
        named = [key for key in WRAPPERS if key in holders]
        if not named and any(isinstance(value, Tensor) and value.ndim for value in content.values()):
            return content, _reached(inside, also)
        if not holders:
            break
        key = (named or holders)[0]
        also += [other for other in holders if other != key and other in WRAPPERS]
        inside.append(key)
        content = content[key]
    if isinstance(content, dict):
        what = f"keys {', '.join(repr(key)[:40] for key in list(content)[:6])}" if content else "an empty dict"
    else:
        what = f"a {type(content).__name__}"
    raise StarfireError(f"{path} holds no state dict; found {what}")


def _reached(inside: list[str], also: list[str]) -> list[str]:
    notes = [f"the weights are under {'.'.join(inside)!r}"] if inside else []
    return notes + ([f"it also holds weights under {', '.join(map(repr, also))}"] if also else [])


def _holds_tensors(value: Any, depth: int = 2) -> bool:
    """Whether `value` is a dict of tensors with axes, a pickled model, or a dict with one of these in it."""
    if is_module(value):
        return True
    if not isinstance(value, dict):
        return False
    if any(isinstance(v, Tensor) and v.ndim for v in value.values()):
        return True
    return depth > 0 and any(_holds_tensors(value[key], depth - 1) for key in WRAPPERS if key in value)


def _strip(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Without the `module.` of DataParallel (where all keys have it) and the `_orig_mod.` of torch.compile."""
    notes = []
    for prefix in _PREFIXES * 2:
        named = [key for key in state if key != "n_averaged"]  # the one key that AveragedModel adds outside
        if named and all(key.startswith(prefix) for key in named):
            state = {key.removeprefix(prefix): state[key] for key in named}
            notes.append(f"prefix {prefix!r} stripped")
    if any("._orig_mod." in key for key in state):
        state = {key.replace("._orig_mod.", "."): value for key, value in state.items()}
        notes.append("'_orig_mod.' stripped inside keys")
    return state, notes
