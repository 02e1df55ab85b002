"""Hooks by which a pruner follows a training loop that knows nothing of it: on optimizers and on gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # that of torch.compiler would load the compiler now
from torch.optim.optimizer import register_optimizer_step_pre_hook

from starfire_cli.text import some
from starfire_cli.workflows.attach.notices import warn


class Follower(Protocol):
    """The calls of a training step, in their order."""

    def prepare(self) -> bool:
        """Between backward and the step. Returns whether the step is to be made.

        More calls before `finish` mask gradients only.
        """
        ...

    def refuse_moved(self) -> None:
        """Raises StarfireError where weights are not where they were."""
        ...

    def finish(self) -> None:
        """After the step of every optimizer."""
        ...

    def mask_gradient(self, key: str) -> None:
        """One gradient was just computed."""
        ...

    def before_evaluation(self) -> None:
        """An optimizer is about to call its closure, perhaps for the second time in a step."""
        ...

    @property
    def uses_gradients(self) -> bool:
        """Whether the step under way reads gradients or adds to them, so that they must be unscaled."""
        ...


class StepHooks:
    """Calls a follower at the steps of some optimizers; a step of training is one of each of them.

    A step that a GradScaler skips is none, nor is one without any gradient, which changes nothing. An optimizer that
    begins another step before the others have made theirs begins another step of training. Optimizers that were not
    given and step these weights all the same are warned of, once each.

    Args:
        follower: who is called.
        optimizers: that hold pruned weights.
        weights: the pruned weights, whose gradients are masked as soon as they are computed, so that clipping sees them
            masked.
    """

    def __init__(
        self, follower: Follower, optimizers: Sequence[torch.optim.Optimizer], weights: dict[str, nn.Parameter]
    ) -> None:
        self._follower = follower
        self._optimizers = tuple(map(id, optimizers))
        self._stepped: set[int] = set()
        self._fed = False  # whether any of those had a gradient
        self._inside = 0
        self._known: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet(optimizers)
        self._names = {id(weight): key for key, weight in weights.items()}
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        handles: list[Any] = []
        for optimizer in optimizers:
            handles.append(optimizer.register_step_pre_hook(self._before))
            handles.append(optimizer.register_step_post_hook(self._after))
        for key, weight in weights.items():
            if weight.requires_grad:
                # A tensor's hooks are out of the garbage collector's sight: what they hold would never be freed.
                mask = partial(_mask, weakref.ref(follower), key)
                handles.append(weight.register_post_accumulate_grad_hook(mask))  # type: ignore[no-untyped-call]
        self._handles = handles
        _watch_all_optimizers()
        _WATCHING.add(self)

    def remove(self) -> None:
        """Call the follower no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _WATCHING.discard(self)

    def state_dict(self) -> dict[str, Any]:
        """The optimizers, by place, that have made the step of training under way, and whether any had gradients.

        A step ends where the last of them makes it, or the first of them another one.
        """
        stepped = [place for place, one in enumerate(self._optimizers) if one in self._stepped]
        return {"stepped": stepped, "fed": self._fed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._stepped = {self._optimizers[place] for place in state["stepped"] if place < len(self._optimizers)}
        self._fed = bool(state["fed"])

    def settle(self) -> None:
        """End a step of training that not all optimizers have made."""
        fed, self._fed = self._fed, False
        self._stepped.clear()
        if fed:
            self._follower.finish()

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Warn of an optimizer that steps these weights and was not given."""
        if self._inside or optimizer in self._known:
            return
        within = next(
            (f"{type(x).__name__}.{n}" for x in self._known for n, v in vars(x).items() if v is optimizer), None
        )
        self._known.add(optimizer)
        held = [self._names[id(p)] for g in optimizer.param_groups for p in g["params"] if id(p) in self._names]
        if held:
            warn(
                f"{type(optimizer).__name__} steps {some(held)}, and is not the optimizer that starfire.attach was "
                "given: its steps are not counted, and no more is pruned; "
                + (
                    f"give attach this one, {within}, whose step is the one that counts"
                    if within
                    else "attach once the optimizer is made, or pruner.detach() and attach to it with "
                    "masks=pruner.masks"
                ),
            )

    @_disable_dynamo
    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._inside += 1
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare(optimizer)
            return None
        followed = self._following(optimizer, closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": followed}
        return (args[0], followed, *args[2:]), kwargs

    def _following(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        def followed() -> Any:
            self._give_back()  # a closure may be called again, and add to gradients
            self._follower.before_evaluation()
            loss = closure()
            self._prepare(optimizer)
            return loss

        return followed

    @torch.no_grad()
    def _prepare(self, optimizer: torch.optim.Optimizer) -> None:
        if _overflowed(optimizer):
            return
        if id(optimizer) in self._stepped:
            self.settle()
        if not any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            self._follower.refuse_moved()  # which leaves a loop without gradients, too
            return
        self._fed = True
        if self._follower.uses_gradients:
            _unscale(optimizer)
        if not self._follower.prepare():
            # Every optimizer passes over parameters without gradients: nothing of it is changed.
            held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._kept += [(p, p.grad) for p in held if p.grad is not None]
            for parameter in held:
                parameter.grad = None

    @_disable_dynamo
    def _after(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inside = 0
        self._give_back()
        if _overflowed(optimizer):
            return
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._optimizers):
            self.settle()

    def _give_back(self) -> None:
        for parameter, gradient in self._kept:
            parameter.grad = gradient
        self._kept = []


_WATCHING: weakref.WeakSet[StepHooks] = weakref.WeakSet()


@cache
def _watch_all_optimizers() -> None:
    """Register one hook of all optimizers there are, for good.

    One for each pruner would have to go where the pruner is freed, which may be while torch iterates over these hooks.
    """
    register_optimizer_step_pre_hook(_watch)


@_disable_dynamo
def _watch(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for hooks in list(_WATCHING):
        hooks.watch(optimizer)


def _mask(follower: weakref.ref[Follower], key: str, weight: Tensor) -> None:
    if (alive := follower()) is not None:
        alive.mask_gradient(key)


def _overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer is called for a step that it will skip, because gradients hold infinities."""
    found = getattr(optimizer, "found_inf", None)  # set by GradScaler for the time of the call
    return isinstance(found, Tensor) and bool(found)


@torch.no_grad()
def _unscale(optimizer: torch.optim.Optimizer) -> None:
    """Divide the gradients of a fused optimizer, which would do it in its step, by the loss scale."""
    scale = getattr(optimizer, "grad_scale", None)  # likewise
    if not isinstance(scale, Tensor):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.grad.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]
