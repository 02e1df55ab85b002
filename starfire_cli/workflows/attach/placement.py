"""The place of pruned weights in a network, to notice cheaply when a module or parameter was moved or replaced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from starfire_cli.errors import StarfireError


class Placement:
    """The way from a network to some of its parameters, module by module.

    Args:
        network: whose they are.
        keys: of the parameters.
    """

    def __init__(self, network: nn.Module, keys: Iterable[str]) -> None:
        self._network = network
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

    def refuse_moved(self, weight: nn.Parameter, device: torch.device) -> None:
        """Raises StarfireError where the network was moved to another device, or its weights were replaced.

        Args:
            weight: one of the parameters.
            device: where they were.
        """
        moved = self.replaced()
        now = weight if moved is None else next(self._network.parameters(), weight)
        if now.device != device:
            raise StarfireError(
                f"the model was moved from {device} to {now.device} after starfire.attach; move it first, then attach"
            )
        if moved is not None:
            raise StarfireError(
                f"{moved} was replaced after starfire.attach, and what stands there now is not pruned; attach "
                "afterwards, or pruner.detach() and attach again, with masks=pruner.masks for what is dead already"
            )
        if now.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise StarfireError(
                "optimizer.step() is being captured in a CUDA graph, whose replays call no hooks; capture forward and "
                "backward only"
            )
