"""Refuses the saved state of another pruner, and reads the masks of the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starfire_cli.errors import BadOption
from starfire_cli.pruning import Masks
from starfire_cli.pruning.masks import unpack_bits
from starfire_cli.text import reason, some


def refuse_other_state(
    state: Mapping[str, Any],
    version: int,
    facts: Mapping[str, object],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises BadOption for a state that this pruner cannot go on from.

    Args:
        state: what `state_dict` of some pruner gave, or anything else.
        version: of the state, which is read.
        facts: this pruner's, as they stand in the state; a fact that is not there counts as the same.
        shapes: of its masks, by state-dict key.
    """
    try:
        there = {name: state[name] for name in ("method", "fc", "target", "era")}
        there |= {name: state[name] for name in facts if name in state}
        written, _ = state["version"], (state["step"], state["core"])
        theirs = {k: tuple(m["shape"]) for k, m in state["masks"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadOption("this is no state of a pruner: give what pruner.state_dict() returned") from None
    if written != version:
        raise BadOption(f"this state of a pruner has version {written!r}; this starfire reads {version}")
    odd = [name for name, value in there.items() if name in facts and value != facts[name]]
    if there["fc"] == there["method"] and facts["fc"] == facts["method"]:
        odd = [name for name in odd if name != "fc"]  # of the whole network
    if odd:
        said, here = (", ".join(f"{_SHOWN.get(n, n)}={_shown(v[n])}" for n in odd) for v in (there, facts))
        raise BadOption(f"the state is of a pruner with {said}, and this one has {here}")
    if theirs != shapes:
        odd = [key for key in {**theirs, **shapes} if theirs.get(key) != shapes.get(key)]
        raise BadOption(f"the state is of a pruner of other layers: {some(odd)} differ")


def masks_of_state(state: Mapping[str, Any]) -> Masks:
    """The masks in a state of the right layers. Raises BadOption where they are damaged."""
    found = {}
    for key, mask in state["masks"].items():
        try:
            found[key] = unpack_bits(mask["bits"].cpu(), tuple(mask["shape"]))
        except (KeyError, AttributeError, ValueError) as error:
            raise BadOption(f"this state of a pruner is damaged: {key}: {reason(error)}") from None
    return found


_SHOWN = {"era": "era_steps"}


def _shown(value: object) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)
