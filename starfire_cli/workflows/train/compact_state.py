"""Compact optimizer state (`--compact-state`): once the masks are fixed, for live weights only.

Each pruned weight is replaced in the optimizer by the vector of its live entries, in the order in which the weight lies
in memory, which `channels_last` changes. The optimizer's state of that length is kept, which is what a checkpoint
holds, and the entries' places, four bytes each. On a CPU the steps of SGD, Adam and AdamW change the weights where they
lie (`pruning.live_step`); all others are the optimizer's own, of vectors that exist during the step alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from starfire_cli.pruning._threads import in_threads
from starfire_cli.pruning.live_step import LivePiece, Rule, new_state, rule_of, state_names, take_steps

_PIECE = 1 << 16  # live entries that a thread gathers at a time


class CompactState:
    """An optimizer that sees live entries of pruned weights.

    Args:
        optimizer: elementwise, over the weights; changed in place, what it remembers of dead entries is dropped.
        weights: by key.
        masks: of some of them; they must not change any more.
        compiled: whether numba computes the steps where the weights lie, else numpy; the bits are the same.
        reads_gradients: whether somebody looks at the live gradients, or changes them, before the step.
        own_steps: whether steps are computed where the weights lie, where they are known there; else all are the
            optimizer's own (as where it takes a scale of the loss out of the gradients).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        *,
        compiled: bool = False,
        reads_gradients: bool = True,
        own_steps: bool = True,
    ) -> None:
        live = {weights[key]: _Live.of(weights[key], mask) for key, mask in masks.items() if not mask.all()}
        self._optimizer, self._live = optimizer, live
        self._by_vector = {one.vector: (weight, one) for weight, one in live.items()}
        self._in_place = own_steps and state_names(optimizer) is not None and all(map(_fits, live))
        self._compiled, self._reads_gradients = compiled, reads_gradients
        for group in optimizer.param_groups:
            group["params"] = [live[p].vector if p in live else p for p in group["params"]]
        for weight, one in live.items():
            if weight in optimizer.state:
                state = optimizer.state.pop(weight)
                optimizer.state[one.vector] = {
                    name: in_memory_order(value, weight).index_select(0, one.places)
                    if isinstance(value, Tensor) and value.shape == weight.shape
                    else value
                    for name, value in state.items()
                }
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def gather(self) -> None:
        """Before the step: live gradients into the vectors, and live weights, where the step is the optimizer's own.

        The weights' own gradients are let go, once nobody needs them.
        """
        if self._in_place and not self._reads_gradients:
            return
        for weight, live in self._live.items():
            if not self._in_place:
                live.vector.data = live.take(in_memory_order(weight, weight))
            live.vector.grad = None if weight.grad is None else live.take(in_memory_order(weight.grad, weight))
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """The step of the live entries, where the optimizer's own does not take it; it is for all the others then."""
        if self._in_place:
            take_steps(self._steps(), compiled=self._compiled)
            for weight, live in self._live.items():
                weight.grad = live.vector.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """After the optimizer's own step: the vectors back into the weights, and their memory let go."""
        if self._in_place:
            return
        for weight, live in self._live.items():
            entries = in_memory_order(weight, weight)
            assert entries.data_ptr() == weight.data_ptr(), "a weight with gaps in memory"
            entries.index_copy_(0, live.places.long(), live.vector)
            live.vector.grad = None
            live.forget()

    @property
    def index_bytes(self) -> int:
        """The memory that the places of live entries take."""
        return sum(live.places.nbytes for live in self._live.values())

    def _steps(self) -> Iterator[tuple[LivePiece, Rule]]:
        names = state_names(self._optimizer) or ()
        for group in self._optimizer.param_groups:
            for vector in group["params"]:
                weight, live = self._by_vector.get(vector, (None, None))
                if weight is None or live is None:
                    continue
                packed = vector.grad is not None
                gradient = vector.grad if packed else weight.grad
                if gradient is None:
                    continue
                state = self._optimizer.state[vector]
                if any(name not in state for name in names):
                    state.update(new_state(self._optimizer, len(live.places), weight.device))
                piece = LivePiece(
                    places_L=live.places.numpy(),
                    weight_N=in_memory_order(weight, weight).numpy(),
                    gradient=(gradient if packed else in_memory_order(gradient, weight)).numpy(),
                    state=tuple(state[name].numpy() for name in names),
                    packed=packed,
                )
                yield piece, rule_of(self._optimizer, group, state)


@dataclass(frozen=True)
class _Live:
    """The live part of a weight: the places of its entries in memory, int32, (L,), and what stands for them in the
    optimizer, whose entries have no memory between steps.
    """

    places: Tensor
    vector: nn.Parameter

    @classmethod
    def of(cls, weight: nn.Parameter, mask: Tensor) -> _Live:
        places = in_memory_order(mask, weight).nonzero().squeeze(1).int()
        live = cls(places, nn.Parameter(weight.detach().new_empty(0)))
        live.forget()
        return live

    def forget(self) -> None:
        """Let the vector's memory go; its length stays, and its gradient with it."""
        self.vector.data = self.vector.new_zeros(1).expand(len(self.places))

    def take(self, entries: Tensor) -> Tensor:
        """Those of the live entries, (L,)."""
        if entries.device.type != "cpu":
            return entries.index_select(0, self.places)
        found = entries.new_empty(len(self.places))
        parts = zip(torch.split(found, _PIECE), torch.split(self.places, _PIECE), strict=True)
        in_threads([(len(at), partial(torch.index_select, entries, 0, at, out=out)) for out, at in parts])
        return found


def _fits(weight: Tensor) -> bool:
    """Whether a weight's steps can be computed where it lies."""
    in_place = in_memory_order(weight, weight).data_ptr() == weight.data_ptr()
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and in_place


def in_memory_order(tensor: Tensor, weight: Tensor) -> Tensor:
    """All entries in the order in which the weight's lie in memory; a view, where the tensor lies like it."""
    if any(a != b for a, b, size in zip(tensor.stride(), weight.stride(), tensor.shape, strict=True) if size > 1):
        tensor = torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.detach().permute(order).reshape(-1)
