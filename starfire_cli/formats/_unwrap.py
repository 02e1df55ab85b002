"""Which of the things in a loaded file are the weights: wrappers opened, prefixes stripped, masks folded in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.masks import Masks

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "generator")
_PREFIXES = ("module.", "_orig_mod.")


def unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], Masks | None, list[str]]:
    """(state dict, masks or None, notes) from whatever a file held. Raises StarfireError where there are no weights."""
    found, notes = _find(content, path)
    state = plain_state(found, path)
    state, stripped = _strip(state)
    notes += stripped
    state, masks, folded = _fold(state)
    return state, masks or None, notes + folded


def plain_state(found: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, dense and of a size that the file can hold."""
    size = path.stat().st_size
    state: dict[str, Tensor] = {}
    for key, tensor in found.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta:
            raise StarfireError(f"{path}: {key} is a tensor without data (device meta)")
        if tensor.numel() * tensor.element_size() > max(64 * size, 1 << 24):
            raise StarfireError(f"{path}: {key} claims shape {tuple(tensor.shape)}, far more than the file holds")
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        state[key] = (tensor.dequantize() if tensor.is_quantized else tensor).detach()
    return state


def _find(content: Any, path: Path) -> tuple[dict[Any, Any], list[str]]:
    """The dict that holds the tensors, down to three wrappers deep, and by which keys it was reached."""
    inside = ""
    for _ in range(4):
        if not isinstance(content, dict):
            break
        if any(isinstance(value, Tensor) and value.ndim for value in content.values()):
            return content, [f"the weights are under {inside!r}"] if inside else []
        named = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        others = [key for key, value in content.items() if isinstance(value, dict) and _has_tensors(value)]
        if not named and not others:
            break
        key = (named or others)[0]
        inside, content = f"{inside}.{key}".lstrip("."), content[key]
    what = f"keys {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, dict) else type(content).__name__
    raise StarfireError(f"{path} holds no state dict; found {what}")


def _has_tensors(value: dict[Any, Any]) -> bool:
    return any(isinstance(v, Tensor) for v in value.values())


def _strip(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Without the `module.` of DataParallel (where all keys have it) and the `_orig_mod.` of torch.compile."""
    notes = []
    for prefix in _PREFIXES * 2:
        if state and all(key.startswith(prefix) or key == "n_averaged" for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key != "n_averaged"}
            notes.append(f"prefix {prefix!r} stripped")
    if any("._orig_mod." in key for key in state):
        state = {key.replace("._orig_mod.", "."): value for key, value in state.items()}
        notes.append("'_orig_mod.' stripped inside keys")
    return state, notes


def _fold(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Masks, list[str]]:
    """`weight_orig` times `weight_mask` (torch.nn.utils.prune) becomes `weight`, with its mask."""
    plain: dict[str, Tensor] = {}
    masks: Masks = {}
    pairs = 0
    for key, tensor in state.items():
        stem, is_mask = key.removesuffix("_mask"), key.endswith("_mask")
        if key.endswith("_orig") and f"{key.removesuffix('_orig')}_mask" in state:
            stem = key.removesuffix("_orig")
            mask = state[f"{stem}_mask"] != 0
            plain[stem] = torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype))
            pairs += 1
            if tensor.ndim >= 2:
                masks[stem] = mask
        elif not (is_mask and f"{stem}_orig" in state):
            plain[key] = tensor
    return plain, masks, [f"{pairs} pairs of *_orig and *_mask folded"] if pairs else []
