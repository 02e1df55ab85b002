"""Notices dead weights that came back from outside, as by `load_state_dict` of a denser network in mid-run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from starfire_cli.pruning import Pruner
from starfire_cli.text import some
from starfire_cli.workflows.attach.notices import warn


class OutsideChanges:
    """Weights, average and optimizer state at the end of a step, to see cheaply whether others changed them.

    Tensors count their changes in place (`_version`), and an optimizer that loads a state gets another dict of them.

    Args:
        core: whose weights these are.
        optimizers: whose state goes with them.
    """

    def __init__(self, core: Pruner, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._core, self._optimizers = core, tuple(optimizers)
        self._tensors: list[Tensor] = [*core.weights.values(), *core.averages]
        self._warned = False
        self._versions: list[int] = []
        self._states: list[Any] = []
        self.note()

    def note(self) -> None:
        """Remember how everything is now."""
        self._versions = [tensor._version for tensor in self._tensors]
        self._states = [optimizer.state for optimizer in self._optimizers]

    def zeros(self) -> dict[str, int]:
        """The dead weights of each layer, but for those that came back. Waits for the device."""
        revived = self.revived(kept=False)
        return {key: count - revived.get(key, 0) for key, count in self._core.zeros.items()}

    def revived(self, *, kept: bool = True) -> dict[str, int]:
        """The dead weights by layer that are not zero any more; see `Pruner.revived`.

        Waits for the device, where anything was changed.
        """
        if [tensor._version for tensor in self._tensors] == self._versions and all(
            optimizer.state is state for optimizer, state in zip(self._optimizers, self._states, strict=True)
        ):
            return {}
        return self._core.revived(kept=kept)

    def undo(self, step: int) -> None:
        """Set dead weights to zero again before step number `step`, and warn, the first time."""
        found = self.revived()
        if not found:
            return
        self._core.enforce()
        if not self._warned:
            self._warned = True
            count = sum(found.values())
            warn(
                f"{count} dead weights of {some(list(found))} were not zero before step {step}, in the model, its "
                "average or the optimizer's state, as after load_state_dict of a denser network; they were set to zero "
                "again. pruner.load_state_dict of the same checkpoint goes back to its masks"
            )
