"""Refuses the saved state of another pruner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starfire_cli.errors import BadOption
from starfire_cli.text import some

_FACTS = ("method", "fc", "target", "era_steps")


def refuse_other_state(
    state: Mapping[str, Any],
    version: int,
    facts: tuple[str, str, float, tuple[int, int]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises BadOption for a state that this pruner cannot go on from.

    Args:
        state: what `state_dict` of some pruner gave, or anything else.
        version: of the state, which is read.
        facts: this pruner's method, method for linear layers, target and era in steps.
        shapes: of its masks, by state-dict key.
    """
    try:
        said = (state["method"], state["fc"], float(state["target"]), tuple(state["era"]))
        written, theirs = state["version"], {k: tuple(m["shape"]) for k, m in state["masks"].items()}
    except (KeyError, TypeError, ValueError):
        raise BadOption("this is no state of a pruner: give what pruner.state_dict() returned") from None
    if written != version:
        raise BadOption(f"this state of a pruner has version {written!r}; this starfire reads {version}")
    for name, there, here in zip(_FACTS, said, facts, strict=True):
        if there != here:
            raise BadOption(f"the state is of a pruner with {name}={there!r}, and this one has {name}={here!r}")
    if theirs != shapes:
        odd = [key for key in {**theirs, **shapes} if theirs.get(key) != shapes.get(key)]
        raise BadOption(f"the state is of a pruner of other layers: {some(odd)} differ")
