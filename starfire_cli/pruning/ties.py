"""Finds tied weights (names of a state dict or model that are one tensor) and tensors that merely overlap in memory.

Two names are tied where storage, offset, shape, strides and type are the same; whatever happens to one happens to the
other, so a tie is pruned, counted and written once. Tensors that share memory in any other way (`b = a.t()`, a slice of
another) are no ties: a mask of one would not fit the other, so neither is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from starfire_cli.errors import Mismatch
from starfire_cli.pruning.masks import Masks


def ties_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Each further name of a tensor -> its first name, in the order of `state`."""
    first: dict[Hashable, str] = {}
    ties = {}
    for key, tensor in state.items():
        found = place(tensor)
        if found is not None and first.setdefault(found, key) != key:
            ties[key] = first[found]
    return ties


def distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each tensor once, under its first name."""
    ties = ties_of(state)
    return {key: tensor for key, tensor in state.items() if key not in ties}


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of a model by all of their names; `named_parameters` gives tied ones the first name only."""
    return dict(model.named_parameters(remove_duplicate=False))


def apply_once(function: Callable[[str, Tensor], Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`function` of each name and tensor, called once for tied names, which stay tied."""
    ties = ties_of(state)
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        found[key] = found[ties[key]] if key in ties else function(key, tensor)
    return found


def replace_tied(state: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the tensors of `changed`, each under all names that its key is tied to."""
    ties = ties_of(state)
    roots = {ties.get(key, key): tensor for key, tensor in changed.items()}
    return {key: roots.get(ties.get(key, key), tensor) for key, tensor in state.items()}


def masks_once(
    masks: Mapping[str, Tensor], ties: Mapping[str, str], keys: Collection[str] = (), *, strict: bool = True
) -> Masks:
    """The masks, one for each tie: under that of its names which is among `keys`, else the first that has a mask.

    Raises Mismatch where two names of one tensor have different masks; without `strict`, the first counts.
    """
    if strict and (apart := masks_apart(masks, ties)):
        raise Mismatch(apart[0])
    wanted = {ties.get(key, key): key for key in reversed(list(keys))}
    found: dict[str, tuple[str, Tensor]] = {}
    for key, mask in masks.items():
        root = ties.get(key, key)
        found.setdefault(root, (wanted.get(root, key), mask))
    return dict(found.values())


def masks_apart(masks: Mapping[str, Tensor], ties: Mapping[str, str]) -> list[str]:
    """Conflicts of masks: a clause for each two names of one tensor that have different masks."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(ties.get(key, key), key), key) for key in masks]
    return [
        f"{one} and {other} are one tensor (tied weights), and their masks differ"
        for one, other in pairs
        if one != other and not torch.equal(masks[one], masks[other].to(masks[one].device))
    ]


def masks_everywhere(model: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """The masks under all names of their parameters."""
    ties = ties_of(parameters_of(model))
    roots = {ties.get(key, key): mask for key, mask in masks.items()}
    return {**masks, **{key: roots[root] for key, root in ties.items() if root in roots}, **roots}


def overlapping(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Each name whose tensor shares a part of its memory with another that it is not tied to -> that other."""
    spans = sorted((*_span(tensor), key) for key, tensor in distinct(state).items() if place(tensor) is not None)
    found: dict[str, str] = {}
    cluster: list[str] = []
    space, reach = 0, -1
    for here, start, end, key in [*spans, (-1, 0, 0, "")]:
        if here != space or start >= reach:
            if len(cluster) > 1:
                found |= _shared({name: state[name] for name in cluster})
            cluster, space, reach = [], here, start
        cluster.append(key)
        reach = max(reach, end)
    return found | {key: found[first] for key, first in ties_of(state).items() if first in found}


def unify(model: nn.Module) -> list[tuple[str, str]]:
    """Merge `Parameter` objects that are one tensor under several names into one, in place.

    An optimizer would update such a tensor once for each, and a move to another device would part them. Returns
    (name, the name it now is the parameter of).
    """
    parameters = parameters_of(model)
    done = []
    for key, first in ties_of(parameters).items():
        if parameters[key] is not parameters[first]:
            owner, _, name = key.rpartition(".")
            model.get_submodule(owner).register_parameter(name, parameters[first])
            done.append((key, first))
    return done


def tie_as(model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """(`state` with the ties of a model, pairs of names that the model ties and whose values differ in `state`).

    A tied name that is missing gets the tensor of those that are there, and equal copies become one tensor.

    Args:
        model: the model's own state dict, on any device.
        state: of a file for it.
    """
    result = dict(state)
    ties = ties_of(model)
    apart = []
    groups: dict[str, list[str]] = {}
    for key, first in ties.items():
        groups.setdefault(first, [first]).append(key)
    for names in groups.values():
        there = [name for name in names if name in state]
        for name in names if there else ():
            if name not in state or _equal(state[name], state[there[0]]):
                result[name] = result[there[0]]
            elif state[name].shape == model[name].shape:
                apart.append((there[0], name))
    for key, other in overlapping(model).items():
        view = _seen_as(model[other], state[other], model[key]) if other in state else None
        if view is not None and key not in state:
            result[key] = view
        elif view is not None and not _equal(view, state[key]) and (key, other) not in apart:
            apart.append((other, key))
    return {key: result[key] for key in [*state, *(key for key in result if key not in state)]}, apart


def place(tensor: Tensor) -> Hashable | None:
    """A key for a tensor's memory and its reading of it, equal for tied tensors; None where it has no memory of its
    own.
    """
    if tensor.layout != torch.strided or not tensor.numel() or tensor._is_zerotensor():
        return None
    how = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (str(tensor.device), *_span(tensor)[:2], how)


def _span(tensor: Tensor) -> tuple[int, int, int]:
    """(0, first byte, byte behind the last), or from the storage's start, with the storage's number, without data."""
    size = tensor.element_size()
    start = size * int(tensor.storage_offset()) if tensor.is_meta else tensor.data_ptr()
    length = size * (1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)))
    return int(tensor.untyped_storage()._cdata) if tensor.is_meta else 0, start, start + length


def _shared(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Of tensors whose spans meet, those that have a byte in common with another -> which."""
    spans = {key: _span(tensor) for key, tensor in tensors.items()}
    low = min(start for _, start, _ in spans.values())
    unit = math.gcd(*(n for key, t in tensors.items() for n in (t.element_size(), spans[key][1] - low)))
    units = (max(end for *_, end in spans.values()) - low) // unit
    names = list(tensors)
    if sum(t.numel() * t.element_size() for t in tensors.values()) > 2 * units * unit:  # too many to be apart
        return {name: names[0] if name != names[0] else names[1] for name in names}
    owner = np.zeros(units, np.int32)
    found: dict[str, str] = {}
    for number, (key, tensor) in enumerate(tensors.items(), 1):
        size = tensor.element_size()
        own = np.lib.stride_tricks.as_strided(
            owner[(spans[key][1] - low) // unit :],
            (*tensor.shape, size // unit),
            (*(4 * step * size // unit for step in tensor.stride()), 4),
        )
        for other in np.unique(own[own > 0]).tolist():
            found.setdefault(key, names[other - 1])
            found.setdefault(names[other - 1], key)
        own[...] = number
    return found


def _seen_as(source: Tensor, values: Tensor, target: Tensor) -> Tensor | None:
    """`values`, which lie in memory as `source` does, read as `target` reads that memory; None where it reads more."""
    if values.shape != source.shape or source.dtype != target.dtype or place(source) is None:
        return None
    low = min(source.storage_offset(), target.storage_offset())
    size = source.untyped_storage().nbytes() // source.element_size() - low
    known = torch.zeros(size, dtype=torch.bool)
    memory = torch.zeros(size, dtype=values.dtype)
    as_source = (source.shape, source.stride(), source.storage_offset() - low)
    as_target = (target.shape, target.stride(), target.storage_offset() - low)
    known.as_strided(*as_source).fill_(True)
    memory.as_strided(*as_source).copy_(values)
    return memory.as_strided(*as_target).clone() if bool(known.as_strided(*as_target).all()) else None


def _equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, so that NaN equals itself and -0.0 is not 0.0."""
    if place(a) is not None and place(a) == place(b):
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
