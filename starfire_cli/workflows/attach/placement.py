"""The place of pruned weights in a network, to notice cheaply when a module or parameter was replaced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


class Placement:
    """The way from a network to some of its parameters, module by module.

    Args:
        network: whose they are.
        keys: of the parameters.
    """

    def __init__(self, network: nn.Module, keys: Iterable[str]) -> None:
        found: dict[str, tuple[dict[str, Any], str, object]] = {}
        for key in keys:
            module, names = network, key.split(".")
            for place, name in enumerate(names[:-1], 1):
                inner: Any = module._modules[name]
                found[".".join(names[:place])] = (module._modules, name, inner)
                module = inner
            found[key] = (module._parameters, names[-1], module._parameters[names[-1]])
        self._shown, self._links = list(found), list(found.values())

    def replaced(self) -> str | None:
        """The name of the first module or parameter that is not the one that was there; None where all are."""
        if all(holder.get(name) is there for holder, name, there in self._links):
            return None
        return next(
            shown
            for shown, (holder, name, there) in zip(self._shown, self._links, strict=True)
            if holder.get(name) is not there
        )
