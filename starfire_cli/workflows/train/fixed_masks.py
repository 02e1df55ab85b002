"""The masks after the era: held to what they were, and made use of where no dead weight can come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from starfire_cli.errors import Mismatch
from starfire_cli.pruning import Pruner
from starfire_cli.pruning.codebook import Codebook
from starfire_cli.workflows.train.compact_state import CompactState
from starfire_cli.workflows.train.shared_values import SharedValues

if TYPE_CHECKING:
    from starfire_cli.distributed.sparse_allreduce import Sending


class FixedMasks:
    """The use of masks that no longer change, from the era's last step on; before it, nothing here does anything.

    Args:
        pruner: whose masks.
        optimizer: whose state is kept for live weights alone with `compact_state`.
        compact_state: whether `--compact-state` asked so.
        reads_gradients: whether live gradients are looked at or changed before the optimizer's step.
        scaled: whether the optimizer takes a scale of the loss out of them.
        codebook: how many values `--values` lets a layer have; None where weights are free.
        shared: the weights that share values then.

    Attributes:
        digests: each layer's mask as it was when the era ended; empty before, and where nothing was pruned.
        compact: the optimizer of live weights.
        values: the optimizer of shared values.
    """

    def __init__(
        self,
        pruner: Pruner,
        optimizer: torch.optim.Optimizer,
        *,
        compact_state: bool,
        reads_gradients: bool = True,
        scaled: bool = False,
        codebook: Codebook | None = None,
        shared: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self.digests: dict[str, str] = {}
        self.compact: CompactState | None = None
        self.values: SharedValues | None = None
        self._pruner, self._optimizer, self._compact_state = pruner, optimizer, compact_state
        self._reads_gradients, self._scaled = reads_gradients, scaled
        self._codebook, self._shared = codebook, shared or {}
        self._sending: Sending | None = None

    def share(self, sending: Sending) -> None:
        """With several ranks: dead gradients are left out of what is sent to them, once `begin` is called."""
        self._sending = sending

    def begin(self, saved: Mapping[str, Tensor] | None = None) -> None:
        """From now on no mask changes: nothing of dead weights is sent, nor kept by a compact optimizer.

        Args:
            saved: of shared values, in a run that goes on (see `SharedValues`).
        """
        if self._codebook is not None and self.values is None:
            self.values = SharedValues(self._optimizer, self._shared, self._pruner.masks, self._codebook, saved)
        if self._compact_state and self.compact is None:
            self.compact = CompactState(
                self._optimizer,
                self._pruner.weights,
                self._pruner.masks,
                compiled=self._pruner.kernels == "numba",
                reads_gradients=self._reads_gradients,
                own_steps=not self._scaled,
            )
            self._pruner.leave_gradients()
        if self._sending is not None:
            self._sending.leave_out(self._pruner.weights, self._pruner.masks)

    def hold(self, digests: Mapping[str, str] | None = None) -> None:
        """From now on `check` compares with these digests; by default with those of the masks as they are."""
        self.digests = self._pruner.digests() if digests is None else dict(digests)

    def check(self) -> None:
        """Raises Mismatch that names the layer if a mask is not what it was when the era ended."""
        if not self.digests:
            return
        now = self._pruner.digests()
        if changed := [key for key, value in self.digests.items() if now.get(key) != value]:
            raise Mismatch(f"the mask of {changed[0]} changed after the era ended ({len(changed)} layers in all)")

    def gather(self) -> None:
        """Before the optimizer's step (see `CompactState.gather`, `SharedValues.gather`)."""
        if self._stand_in is not None:
            self._stand_in.gather()

    def step(self) -> None:
        """The step of what the optimizer's own does not take (see `CompactState.step`)."""
        if self.compact is not None:
            self.compact.step()

    def scatter(self) -> None:
        """After it (see `CompactState.scatter`, `SharedValues.scatter`)."""
        if self._stand_in is not None:
            self._stand_in.scatter()

    @property
    def parameters(self) -> list[nn.Parameter] | None:
        """The optimizer's parameters, with shared values or a compact state; None where they are the weights."""
        return None if self._stand_in is None else self._stand_in.parameters

    @property
    def _stand_in(self) -> CompactState | SharedValues | None:
        return self.compact or self.values
