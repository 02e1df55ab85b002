"""Folds masks that other pruning code keeps in a state dict into plain weights and masks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from starfire_cli.pruning.masks import Masks
from starfire_cli.pruning.ties import ties_of

_NNCF = re.compile(r"__nncf_hooks\.post_hooks\.(.+)__\d+\.\d+\.binary_mask")
_CHAIN = re.compile(r"((?:.+\.)?parametrizations\.[^.]+)\.")


def fold(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Masks, list[str]]:
    """Folds known masks; returns (state dict in which masked weights are zero, masks, notes).

    For a parameter `X` of module `M`:

    - `X_orig` and `X_mask`: torch.nn.utils.prune;
    - `M.parametrizations.X.original` and `M.parametrizations.X.0.mask`: a mask as a parametrization;
    - `X` and `X_mask`, or `M.weight` and `M.mask`: layers that multiply by a mask in their forward pass;
    - `M._nni_wrapper.X` and `M._nni_wrapper.X_mask`: NNI, whose `M.X` beside it is a stale copy;
    - `M.X` and `__nncf_hooks.post_hooks.M:X__0.0.binary_mask`: NNCF.

    Only masks of zeros and ones with their weight's shape count; masks of one axis (biases) are applied, not kept.
    Names of one tensor stay so where their masks are equal.
    """
    # What the wrapper holds comes after the stale copy, and takes its place.
    state = {key.replace("._nni_wrapper.", "."): tensor for key, tensor in state.items()}
    pairs = {weight: (mask, name) for weight, mask, name in _pairs(state) if _is_mask(state[mask], state[weight])}
    used = {mask for mask, _ in pairs.values()}
    plain: dict[str, Tensor] = {}
    masks: Masks = {}
    ties = ties_of(state)
    apart = []
    back = 0
    for key, tensor in state.items():
        first = ties.get(key)
        if first is not None and (key in pairs or first in pairs):
            if _masked_alike(state, pairs, first, key):
                plain[pairs[key][1]] = plain[pairs[first][1]]
                continue
            apart.append(f"{first} and {key} are one tensor under different masks, so that they are two from here on")
        if key in pairs:
            mask_key, name = pairs[key]
            alive = state[mask_key] != 0
            back += int((tensor[~alive] != 0).sum())
            plain[name] = torch.where(alive, tensor, torch.zeros((), dtype=tensor.dtype))
            if tensor.ndim >= 2:
                masks[name] = alive
        elif key not in used:
            plain[key] = tensor
    notes = [f"{len(pairs)} masks beside their weights folded in ({back} weights under them were not zero)"]
    return plain, masks, notes + apart if pairs else []


def _masked_alike(state: dict[str, Tensor], pairs: dict[str, tuple[str, str]], first: str, key: str) -> bool:
    """Whether two names of one tensor have equal masks, so that they stay one."""
    if key not in pairs or first not in pairs:
        return False
    return torch.equal(state[pairs[first][0]] != 0, state[pairs[key][0]] != 0)


def _pairs(state: dict[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """(key of a weight, key of its possible mask, key of the masked weight)."""
    chains = Counter(found[1] for key in state if (found := _CHAIN.match(key)))
    for key in state:
        if nncf := _NNCF.fullmatch(key):
            weight = nncf[1].replace(":", ".")
            if weight in state:
                yield weight, key, weight
        elif key.endswith("_mask"):
            name = key.removesuffix("_mask")
            for weight in (f"{name}_orig", name):
                if weight in state:
                    yield weight, key, name
                    break
        elif key.endswith(".mask"):
            module = key.removesuffix(".mask")
            stem, _, index = module.rpartition(".")
            if index.isdigit() and ".parametrizations." in f".{stem}" and f"{stem}.original" in state:
                if chains[stem] != 2:  # one rule of several: _reparam goes through them in order
                    continue
                owner, _, parameter = stem.rpartition("parametrizations.")
                yield f"{stem}.original", key, f"{owner}{parameter}"
            elif f"{module}.weight" in state:
                yield f"{module}.weight", key, f"{module}.weight"


def _is_mask(mask: Tensor, weight: Tensor) -> bool:
    return mask.shape == weight.shape and bool(((mask == 0) | (mask == 1)).all())
