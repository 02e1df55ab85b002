"""Sparse all-reduce: once the masks are fixed, exchanges the gradients of live weights alone.

A communication hook of DistributedDataParallel. Gradients are summed, not averaged: each rank divides its loss by the
whole batch already, so that shares of unequal size weigh as they would in one process.
"""

# No postponed annotations here: DistributedDataParallel compares those of a hook with the types themselves.

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future


@dataclass
class Sending:
    """The masks and byte counts of the communication hook.

    Args:
        masks: of the weights whose dead gradients stay at home, by parameter; empty as long as masks may change.
        steps: in which gradients were sent.
        sent: bytes of gradients that this rank has handed over in them.
        whole: what it would have been with all gradients.
    """

    masks: dict[Tensor, Tensor] = field(default_factory=dict)
    steps: int = 0
    sent: int = 0
    whole: int = 0
    _told: tuple[int, int] = (0, 0)
    _before: tuple[int, int, int] = (0, 0, 0)
    _live: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def leave_out(self, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        """From now on, send no gradient of a dead weight. The masks must not change any more."""
        self.masks = {weights[key]: mask for key, mask in masks.items()}
        self._live.clear()
        self._before = self.steps, self.sent, self.whole

    def a_step(self) -> int:
        """Bytes sent in a step, on average since this was last asked; 0 where there was none."""
        (steps, sent), self._told = self._told, (self.steps, self.sent)
        return round((self.sent - sent) / max(1, self.steps - steps))

    def report(self) -> tuple[str, ...]:
        """The bytes saved by leaving out dead gradients, as a line for the user; empty where none were left out."""
        steps, sent, whole = (
            now - then for now, then in zip((self.steps, self.sent, self.whole), self._before, strict=True)
        )
        if not self.masks or not steps:
            return ()
        sent, whole = round(sent / steps), round(whole / steps)
        return (
            f"gradients after the era: each process sent {sent:,} of {whole:,} bytes a step "
            f"({1 - sent / whole:.1%} saved)",
        )

    def live(self, bucket: GradBucket) -> Tensor | None:
        """Places of live gradients in the bucket's buffer, int32, (live,); None where all of them are."""
        parameters = bucket.parameters()
        if not any(parameter in self.masks for parameter in parameters):
            return None
        key = tuple(map(id, parameters))  # the buckets are laid out anew once, after the first step
        if key not in self._live:
            buffer = bucket.buffer()
            alive = torch.ones_like(buffer, dtype=torch.bool)
            for parameter, gradient in zip(parameters, bucket.gradients(), strict=True):
                if parameter in self.masks:
                    # The bucket has each gradient in its parameter's memory order; `gradient` only looks contiguous.
                    start = gradient.storage_offset() - buffer.storage_offset()
                    alive.as_strided(parameter.shape, parameter.stride(), start).copy_(self.masks[parameter])
            self._live[key] = alive.nonzero().squeeze(1).int()
        return self._live[key]


def summed(state: Sending, bucket: GradBucket) -> Future[Tensor]:
    """The hook: the bucket's gradients, summed over all ranks. What is not sent keeps this rank's own gradient."""
    buffer = bucket.buffer()
    live = state.live(bucket)
    state.steps += bucket.is_last()
    state.whole += buffer.nbytes
    if live is None:
        state.sent += buffer.nbytes
        return _all_reduced(buffer)
    chosen = buffer.index_select(0, live)
    state.sent += chosen.nbytes

    def back(done: Future[Tensor]) -> Tensor:
        buffer.index_copy_(0, live.long(), done.value())
        return buffer

    return _all_reduced(chosen).then(back)


def _all_reduced(tensor: Tensor) -> Future[Tensor]:
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
