"""Finds the weights in what a file holds: opens wrappers, takes one of several networks, strips prefixes."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starfire_cli.errors import BadOption, StarfireError, option
from starfire_cli.formats.checkpoint.inert import is_module, module_state
from starfire_cli.formats.checkpoint.pickle_calls import MOST_AXES, SMALL
from starfire_cli.pruning.ties import place
from starfire_cli.text import some

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
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|averaging|shadow)(?![a-z])", re.IGNORECASE)
_AVERAGED = "n_averaged"  # of torch's AveragedModel: how many states it is the average of
_BESIDE_AVERAGE = "current_model_state"  # Lightning's WeightAveraging puts the average in the weights' own place
_LIGHTNING = "pytorch-lightning_version"
# Modules that wrap others and belong to nobody's network: of torch.compile, FSDP, activation checkpoints, Lightning.
_WRAPPING = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_PREFIXES = ("module.", *(f"{name}." for name in _WRAPPING))


def unwrap(content: Any, path: Path, weights: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """(state dict, notes for people) from whatever a file held.

    Args:
        content: what the file held.
        path: the file.
        weights: of several networks, "model" for what was trained, "ema" for its average, or a name in the file; None
            for what was trained, if it is there.

    Raises:
        StarfireError: there are no weights.
        BadOption: not those of `weights`.
    """
    found, way = _find(content, path, weights)
    state = plain_state(found, path)
    dropped = [repr(key) for key in found if key not in state]
    notes = list(way.notes)
    if dropped:
        notes.append(f"not tensors, left out: {', '.join(dropped[:4])}{', ...' if len(dropped) > 4 else ''}")
    averaged = way.averaged or _AVERAGED in state
    state, chosen, taken = _choose(state, None if way.taken else weights)
    if weights is not None and not (taken or way.taken or weights == ("ema" if averaged else "model")):
        here = some([*way.inside, *way.others]) or "one network"
        what = {"ema": "no average of its weights", "model": "only an average"}.get(weights, "nothing of that name")
        raise BadOption(f"{option('weights', weights)}: {path} holds {what}; it has {here}")
    state, stripped = _strip(state, lightning=isinstance(content, dict) and _LIGHTNING in content)
    return state, notes + chosen + stripped


def shard_state(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of one of the files that an index names, under the names that they have there."""
    return plain_state(_find(content, path, None)[0], path)


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
        if tensor.is_nested or tensor.ndim > MOST_AXES:
            raise StarfireError(f"{path}: {key} is a tensor of {tensor.ndim} axes or of tensors; no network has these")
        # An axis of 0 leaves nothing to hold, but whoever counts along another one would count to what that says.
        bytes_here = math.prod(size for size in tensor.shape if size) * tensor.element_size()
        claimed += bytes_here
        backing = _backing(tensor)
        stored.update(backing)
        # A view may repeat what it shows (expand); a few bytes then claim terabytes as soon as anything counts them.
        share = sum(backing.values()) if tensor.layout == torch.strided else 1000 * sum(backing.values())
        if bytes_here > max(share, SMALL):
            raise StarfireError(f"{path}: {key} claims shape {tuple(tensor.shape)}, far more than the file holds")
        known = place(tensor) or id(tensor)
        if known not in made:
            made[known] = _plain(tensor)
        state[key] = made[known]
    if claimed > 1000 * sum(stored.values()) + SMALL:
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


class _Way:
    """How the dict of tensors was reached: through which keys, past which others, whether it is an average."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.others: list[str] = []
        self.averages: list[str] = []
        self.averaged = self.taken = self.pickled = False

    def step(self, key: str, beside: Iterable[str], averages: list[str]) -> None:
        """Go into `key`."""
        self.averaged = self.averaged or key in averages
        self.averages += [name for name in averages if name != key]
        self.others += [name for name in beside if name != key]
        self.inside.append(key)

    @property
    def notes(self) -> list[str]:
        where = f"the weights are under {'.'.join(self.inside)!r}" if self.inside else ""
        plain = [name for name in self.others if name not in self.averages]
        if self.averaged:
            where += ", an average"
            where += f" ({option('weights', 'model')} takes what was trained, {plain[0]!r})" if plain else ""
        elif self.averages:
            where += f" ({option('weights', 'ema')} takes their average, {self.averages[0]!r})"
        elif plain:
            where += f"; it also holds weights under {', '.join(map(repr, plain))}"
        pickled = ["read from a whole pickled model, of which no code was run"] if self.pickled else []
        return ([where] if where else []) + pickled


def _find(content: Any, path: Path, weights: str | None) -> tuple[dict[Any, Any], _Way]:
    """The dict that holds the tensors, up to three wrappers deep."""
    way = _Way()
    for _ in range(4):
        if is_module(content):
            way.pickled = True
            return module_state(content), way
        if not isinstance(content, dict):
            break
        holders = [key for key, value in content.items() if isinstance(key, str) and _holds_tensors(value)]
        averages = [key for key in holders if _AVERAGE.search(key)]
        if _BESIDE_AVERAGE in holders and "state_dict" in holders:
            averages.insert(0, "state_dict")
        plain = [key for key in (_BESIDE_AVERAGE, *WRAPPERS) if key in holders and key not in averages]
        if not (plain or averages) and any(isinstance(value, Tensor) and value.ndim for value in content.values()):
            return content, way
        callback = _of_a_callback(content) if weights == "ema" and not averages and not way.taken else None
        if callback is not None:
            way.step(callback[0], plain, [callback[0]])
            way.taken, content = True, callback[1]
            continue
        if not holders:
            break
        key = (plain or averages or holders)[0]
        alike = [] if plain or averages else holders
        if weights is not None and not way.taken:
            if weights == "ema" and averages:
                key, way.taken = averages[0], True
            elif weights not in ("model", "ema") and weights in holders:
                key, way.taken = weights, True
        way.step(key, [*plain, *averages, *alike], averages)
        content = content[key]
    if isinstance(content, dict):
        what = f"keys {', '.join(repr(key)[:40] for key in list(content)[:6])}" if content else "an empty dict"
    else:
        what = f"a {type(content).__name__}"
    raise StarfireError(f"{path} holds no state dict; found {what}")


def _of_a_callback(content: dict[Any, Any]) -> tuple[str, Any] | None:
    """(where, the average) that one of Lightning's callbacks has saved with its own state."""
    callbacks = content.get("callbacks")
    for name, state in callbacks.items() if isinstance(callbacks, dict) else ():
        for key, value in state.items() if isinstance(state, dict) else ():
            if isinstance(key, str) and _AVERAGE.search(f"{name}.{key}") and _holds_tensors(value):
                return f"callbacks.{name}.{key}", value
    return None


def _holds_tensors(value: Any, depth: int = 2) -> bool:
    """Whether `value` is a dict of tensors with axes, a pickled model, or a dict with one of these in it."""
    if is_module(value):
        return True
    if not isinstance(value, dict):
        return False
    if any(isinstance(v, Tensor) and v.ndim for v in value.values()):
        return True
    inner = (key for key in value if isinstance(key, str) and (key in WRAPPERS or _AVERAGE.search(key)))
    return depth > 0 and any(_holds_tensors(value[key], depth - 1) for key in inner)


def _choose(state: dict[str, Tensor], weights: str | None) -> tuple[dict[str, Tensor], list[str], bool]:
    """(one of the networks that lie side by side in a state dict, notes, whether `weights` names it).

    An average is told by its name, and by having the keys of the others.
    """
    tops: dict[str, list[str]] = {}
    for key in state:
        tops.setdefault(key.partition(".")[0], []).append(key)
    if weights not in (None, "model", "ema"):
        inside = {key.removeprefix(f"{weights}."): state[key] for key in state if key.startswith(f"{weights}.")}
        return (inside, [f"the weights are those under '{weights}.'"], True) if inside else (state, [], False)
    suspects = [top for top in tops if _AVERAGE.search(top) and len(tops) > 1]
    rest = [key for top, keys in tops.items() if top not in suspects for key in keys]
    known = {short: short for key in rest for short in (key, key.partition(".")[2])}
    known |= {short.replace(".", ""): short for short in known}  # buffers cannot have dots in their names
    for top in suspects:
        inner = {key: key.removeprefix(f"{top}.").removeprefix("module.") for key in tops[top]}
        # Scalars that the network does not have are the average's own: its decay, how often it was updated.
        inner = {key: name for key, name in inner.items() if state[key].ndim or name in known}
        if not any(state[key].ndim for key in inner) or not all(name in known for name in inner.values()):
            continue
        if weights == "ema":
            average = {known[name]: state[key] for key, name in inner.items()}
            return (
                average,
                [f"the weights are the average under '{top}.' ({option('weights', 'model')}: as trained)"],
                True,
            )
        trained = {key: state[key] for key in rest}
        return trained, [f"the average under '{top}.' is left out ({option('weights', 'ema')} takes it)"], True
    return state, [], False


def _strip(state: dict[str, Tensor], *, lightning: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Without the names of what wraps modules from outside, and the `module.` of DataParallel where all keys have it.

    Args:
        state: a state dict.
        lightning: whether a LightningModule holds the network, as an attribute under whose name all keys lie.
    """
    notes = []
    for prefix in _PREFIXES * 2:
        named = [key for key in state if key != _AVERAGED]  # the one key that AveragedModel adds outside
        if named and all(key.startswith(prefix) for key in named):
            state = {key.removeprefix(prefix): state[key] for key in named}
            notes.append(f"prefix {prefix!r} stripped")
    for name in _WRAPPING:
        if any(f".{name}." in f".{key}" for key in state):
            short = {key: f".{key}".replace(f".{name}.", ".").removeprefix(".") for key in state}
            if len(set(short.values())) == len(short):
                state = {short[key]: value for key, value in state.items()}
                notes.append(f"'{name}.' stripped inside keys")
    tops = {key.partition(".")[0] for key in state}
    if lightning and len(tops) == 1 and all("." in key for key in state):
        (top,) = tops
        state = {key.removeprefix(f"{top}."): value for key, value in state.items()}
        notes.append(f"prefix '{top}.' stripped")
    return state, notes
