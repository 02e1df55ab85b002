"""Brings a checkpoint's tensors under the names that a network has for them.

The weights may lie deeper or shallower in the file than in the network (`model.` of Lightning, `backbone.`), and those
of a network that computes a weight from parts (weight_norm) come back in parts, as the file has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from starfire_cli.errors import StarfireError, option
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.pruning.ties import tie_as, ties_of
from starfire_cli.text import some

COUNTER = "num_batches_tracked"  # files older than torch 0.4.1 have none, and nothing computes with it
_TRIED = 64  # prefixes
_WRAPPER = "module"  # of DataParallel around a part of a network


def match_names(net: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its tensors and masks under the network's keys, as far as names alone can tell.

    A prefix is taken off or put on where that makes all of the network's tensors be there; a note says so. Where no
    prefix does, the keys stay as they are, and `fit.misfit` says what is missing.

    Raises StarfireError where several prefixes fit, so that the file holds several such networks.
    """
    model = net.state_dict()
    own = model.keys()
    raw = {key: tensor for parts in checkpoint.parts.values() for key, tensor in parts.items()}
    full = {**checkpoint.state, **raw}
    tied = ties_of(model)
    names, notes = _renamed(own, {*tied, *tied.values()}, full, checkpoint)
    targets = {names[key]: {names[part] for part in parts} for key, parts in checkpoint.parts.items() if key in names}
    dropped: set[str] = set()
    for target, parts in targets.items():
        in_parts = target not in own and parts <= own
        dropped |= {target} if in_parts else parts - own
    if dropped & targets.keys():
        notes.append(
            "the network computes these from parts, as the file has them: " + some(sorted(dropped & targets.keys()))
        )
    state = {names[key]: tensor for key, tensor in full.items() if key in names and names[key] not in dropped}
    masks = {names[key]: mask for key, mask in (checkpoint.masks or {}).items() if names.get(key) in state}
    return replace(
        checkpoint,
        state=tie_as(model, state)[0],
        masks=masks or (None if checkpoint.masks is None else {}),
        notes=(*checkpoint.notes, *notes),
        parts={},
    )


def _renamed(
    own: Iterable[str], tied: Collection[str], given: Mapping[str, Tensor], checkpoint: Checkpoint
) -> tuple[dict[str, str], list[str]]:
    """The network's name for each tensor of the file (those of other networks left out), and what was done to names."""
    own = set(own)
    counted = {key for key in own if not key.endswith(COUNTER)}
    needed = counted - set(tied) or counted  # of tied weights a file may hold one name alone
    same = {key: key for key in given}
    if not needed or needed <= given.keys():
        return same, []
    found: dict[str, dict[str, str]] = {}
    for prefix in _prefixes(needed, given):
        names = {key: key.removeprefix(prefix) for key in given if key.startswith(prefix)}
        if _WRAPPER in "".join(names.values()) and not needed <= set(names.values()):
            names = {key: _unwrapped(name, own) for key, name in names.items()}
        if needed <= set(names.values()) and len(set(names.values())) == len(names):
            found[prefix] = names
    for prefix in () if found else sorted({key[: key.index(".") + 1] for key in given if "." in key}):
        names = {key: key.removeprefix(prefix) for key in given}  # of some keys: those of a head lie beside it
        if needed <= set(names.values()) <= own and len(set(names.values())) == len(names):
            found[prefix] = names
    exact = {prefix: names for prefix, names in found.items() if set(names.values()) <= own} or found
    exact = dict({frozenset(names.items()): (prefix, names) for prefix, names in exact.items()}.values())
    if len(exact) > 1:
        shown = ", ".join(map(repr, sorted(exact)))
        name = min(exact).partition(".")[0]
        raise StarfireError(
            f"{checkpoint.path} holds several such networks, under {shown}; {option('weights', name)} takes one"
        )
    for prefix, names in exact.items():
        notes = [f"prefix {prefix!r} stripped"] if prefix else []
        if any(name != key.removeprefix(prefix) for key, name in names.items()):
            notes.append(f"'{_WRAPPER}.' stripped inside keys")
        if rest := [key for key in checkpoint.state if key not in names]:
            notes.append(f"left out, since they are not under {prefix!r}: {some(rest)}")
        return names, notes
    first = min(given, default="")
    for key in sorted(needed):
        if key.endswith(f".{first}"):
            prefix = key.removesuffix(first)
            if {prefix + name for name in given} >= needed and all(prefix + name in own for name in given):
                return {name: prefix + name for name in given}, [f"prefix {prefix!r} added"]
    return same, []


def _prefixes(needed: set[str], given: Iterable[str]) -> list[str]:
    """Prefixes of one of the network's keys in the file, the shortest first; the empty one is among them."""
    probe = max(needed, key=lambda key: (len(key), key))
    found = {""}
    for key in given:
        plain = key.replace(f"{_WRAPPER}.", "") if _WRAPPER in key else key
        for name in {key, plain}:
            if name.endswith(f".{probe}"):
                found.add(name.removesuffix(probe))
    return sorted(found, key=len)[:_TRIED]


def _unwrapped(name: str, own: set[str]) -> str:
    """A key without the `module.` that the network's own keys do not have."""
    if name in own:
        return name
    return ".".join(part for part in name.split(".") if part != _WRAPPER)
