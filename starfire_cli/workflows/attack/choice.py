"""Chooses the attack and its sizes from a spec and the options beside it, of which each may be given once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starfire_cli.attacks import ATTACKS, Attack, Size, parse_sizes, with_options
from starfire_cli.errors import BadOption, option

DEFAULT_SIZES = {"linf": "0,0.01,0.05", "l2": "0,0.25,0.5,1"}


def choose_attack(spec: str, eps: str | None, options: Mapping[str, Any]) -> tuple[Attack, tuple[Size, ...]]:
    """The attack of `spec` and the sizes to measure at.

    Args:
        spec: such as "pgd:steps=20"; an `eps` in it is a size beside 0.
        eps: sizes, as text; None for that of the spec, else those that are usual for the norm.
        options: that take the place of the attack's own; None is not given.

    Raises BadOption, also where both say something about one option.
    """
    parts = (part.strip().partition("=") for part in spec.partition(":")[2].split(","))
    own = {key.strip().replace("-", "_"): value.strip() for key, sign, value in parts if sign}
    chosen = ATTACKS.build(spec)
    for name, value in {"eps": eps, **options}.items():
        if value is not None and name in own and (name == "eps" or getattr(chosen, name) != value):
            raise BadOption(
                f"{option('attack', spec)} says {name}={own[name]}, and {option(name, value)} says otherwise; give one"
            )
    chosen = with_options(chosen, **options)
    text = eps
    if text is None:
        text = f"0,{own['eps']}" if "eps" in own else DEFAULT_SIZES[chosen.norm]
    return chosen, parse_sizes(text, chosen.norm)
