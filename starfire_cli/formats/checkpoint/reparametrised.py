"""Folds reparametrised weights (weight_norm, spectral_norm, parametrizations) of a state dict into plain ones.

torch keeps such a weight in parts: `X_g` and `X_v`, `X_orig` with `X_u` and `X_v`, or `parametrizations.X.*`. A part is
no weight: zeros in it, or a change of one part alone, do to the weight what nobody asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from starfire_cli.pruning.masks import Masks
from starfire_cli.text import counted, some

_CHAIN = re.compile(r"((?:.+\.)?)parametrizations\.([^.]+)\.(?:(original[01]?)|(\d+)\.(.+))")
_CONSISTENT = 0.5  # cosine; power iteration leaves it near 1, chance near 0


@dataclass(frozen=True, kw_only=True)
class FoldedParts:
    """A state dict whose reparametrised weights are folded into plain ones.

    Args:
        state: plain weights in the place of their parts; the parts of a weight whose rule is not known stay.
        masks: by the keys of `state`.
        parts: of each weight that was folded, by their own keys: for a model that computes it from them itself.
        notes: a sentence each.
    """

    state: dict[str, Tensor]
    masks: Masks
    parts: dict[str, dict[str, Tensor]]
    notes: list[str]


@dataclass(kw_only=True)
class _Group:
    """One weight in parts: `originals` are what is trained, `steps` the tensors of each rule, in order."""

    originals: dict[str, str]
    steps: dict[int, dict[str, str]]

    @property
    def keys(self) -> list[str]:
        return [*self.originals.values(), *(key for step in self.steps.values() for key in step.values())]


class _Unknown(Exception):
    """Raised where the weight cannot be computed from its parts."""


def fold_parts(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> FoldedParts:
    """Computes weights from their parts as torch's modules do in eval mode, in float32 or wider.

    Args:
        state: a state dict.
        masks: of some of its tensors; those of a part become those of its weight.
    """
    groups = {key: group for key, group in _groups(state).items() if key not in state}
    weights: dict[str, Tensor] = {}
    folded_masks = dict(masks)
    rules: dict[str, int] = {}
    unknown: list[str] = []
    for key, group in groups.items():
        try:
            weight, mask, names = _weight(state, group)
        except _Unknown:
            unknown.append(key)
            continue
        for part in group.originals.values():
            if part in folded_masks:  # a gain's has one entry for each index of one axis
                given = folded_masks.pop(part).expand(weight.shape)
                mask = given if mask is None else mask & given
        if mask is not None:
            folded_masks[key] = mask
            weight = weight.masked_fill(~mask, 0)
        weights[key] = weight
        for name in names:
            rules[name] = rules.get(name, 0) + 1
    first = {groups[key].keys[0]: key for key in weights}
    used = {part for key in weights for part in groups[key].keys}
    plain: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in first:
            plain[first[key]] = weights[first[key]]
        elif key not in used:
            plain[key] = tensor
    notes = [f"{counted(count, 'weight')} computed by {rule} folded into plain ones" for rule, count in rules.items()]
    if unknown:
        notes.append(
            f"computed by a rule that the file does not name, so left in parts and never pruned: {some(unknown)}"
        )
    parts = {key: {part: state[part] for part in groups[key].keys} for key in weights}
    return FoldedParts(state=plain, masks=folded_masks, parts=parts, notes=notes)


def _groups(state: Mapping[str, Tensor]) -> dict[str, _Group]:
    """Weights in parts, by the key that the plain weight has."""
    found: dict[str, _Group] = {}
    for key in state:
        if chain := _CHAIN.fullmatch(key):
            group = found.setdefault(chain[1] + chain[2], _Group(originals={}, steps={}))
            if chain[3]:
                group.originals[chain[3]] = key
            else:
                group.steps.setdefault(int(chain[4]), {})[chain[5]] = key
        elif key.endswith("_v"):
            name = key.removesuffix("_v")
            gain, origin, left = f"{name}_g", f"{name}_orig", f"{name}_u"
            if gain in state and _is_gain(state[gain], state[key]):
                found[name] = _Group(originals={"original0": gain, "original1": key}, steps={})
            elif origin in state and left in state and state[origin].ndim >= 2:
                found[name] = _Group(originals={"original": origin}, steps={0: {"_u": left, "_v": key}})
    return {key: group for key, group in found.items() if group.originals}


def _weight(state: Mapping[str, Tensor], group: _Group) -> tuple[Tensor, Tensor | None, list[str]]:
    """(the weight, what is alive of it or None, the names of its rules). Raises _Unknown."""
    originals = {name: state[key] for name, key in group.originals.items()}
    names: list[str] = []
    if originals.keys() == {"original0", "original1"}:
        gain, direction = originals["original0"], originals["original1"]
        if not _is_gain(gain, direction):
            raise _Unknown
        dtype, value = direction.dtype, _normed(_wide(gain), _wide(direction))
        names.append("weight_norm")
    elif originals.keys() == {"original"} and originals["original"].is_floating_point() and group.steps:
        dtype, value = originals["original"].dtype, _wide(originals["original"])
    else:
        raise _Unknown
    alive: Tensor | None = None
    for _, step in sorted(group.steps.items()):
        tensors = {name: state[key] for name, key in step.items()}
        if tensors.keys() == {"_u", "_v"}:
            value = value / _largest_singular_value(value, _wide(tensors["_u"]), _wide(tensors["_v"]))
            names.append("spectral_norm")
        elif tensors.keys() == {"mask"} and _is_mask(tensors["mask"], value):
            mask = tensors["mask"] != 0
            alive = mask if alive is None else alive & mask
            value = value.masked_fill(~mask, 0)
            names.append("masks")
        else:
            raise _Unknown
    return value.to(dtype), alive, names


def _normed(gain: Tensor, direction: Tensor) -> Tensor:
    """weight_norm: `gain` along `direction`, whose length is taken over the axes that `gain` has not.

    A direction of length zero, of which torch makes NaN, gives zeros.
    """
    axes = [axis for axis in range(direction.ndim) if gain.ndim == 0 or gain.shape[axis] == 1]
    length = torch.linalg.vector_norm(direction, dim=axes, keepdim=gain.ndim > 0)
    return direction * torch.where(length == 0, torch.zeros_like(length), gain / length)


def _largest_singular_value(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """spectral_norm's: u' W v, W unrolled along the axis for which `u` and `v` are its singular vectors.

    The axis is that of the outputs: 0, or 1 in transposed convolutions. Raises _Unknown where no axis fits, or where
    two do and the vectors do not tell which.
    """
    fitting = []
    for axis in (0, 1):
        matrix = weight.movedim(axis, 0).flatten(1)
        if u.shape == matrix.shape[:1] and v.shape == matrix.shape[1:]:
            sigma, back = torch.dot(u, matrix @ v), matrix.T @ u
            cosine = float(sigma / (back.norm() * v.norm()).clamp_min(1e-30))
            fitting.append((cosine, -axis, sigma))
    if not fitting:
        raise _Unknown
    cosine, _, sigma = max(fitting, key=lambda found: found[:2])
    if not bool(torch.isfinite(sigma)) or float(sigma) == 0:
        raise _Unknown
    if len(fitting) > 1 and weight.ndim > 2 and cosine < _CONSISTENT:
        raise _Unknown
    return sigma


def _is_gain(gain: Tensor, direction: Tensor) -> bool:
    """Whether `gain` has one number for each index of one axis of `direction` (or one in all), as weight_norm's has."""
    if not (gain.is_floating_point() and direction.is_floating_point()) or direction.ndim < 2:
        return False
    if gain.ndim == 0:
        return True
    if gain.ndim != direction.ndim or any(a not in (1, b) for a, b in zip(gain.shape, direction.shape, strict=True)):
        return False
    return sum(size > 1 for size in gain.shape) <= 1


def _is_mask(mask: Tensor, weight: Tensor) -> bool:
    return mask.shape == weight.shape and bool(((mask == 0) | (mask == 1)).all())


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
