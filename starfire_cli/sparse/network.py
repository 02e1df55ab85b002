"""`SparseNetwork`: a network whose convolutions and linear layers run from their live weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.own_code import one_line
from starfire_cli.pruning.ties import masks_everywhere, parameters_of
from starfire_cli.sparse import choosing, compiler
from starfire_cli.sparse.patterns import Shape
from starfire_cli.sparse.plan import Choice, ExecutionPlan, Maps
from starfire_cli.sparse.rivals import ONNX, OWN, NetworkEngine, Rivals, Run, choose_engine
from starfire_cli.sparse.tracing import TracedNetwork
from starfire_cli.sparse.weights import in_memory


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """The way in which images of one shape are run: by `plan`, or by `run` as a whole in the process that made it."""

    plan: ExecutionPlan
    choices: list[Choice]
    engine: NetworkEngine
    run: Run | None = None
    process: int | None = None  # None where it works in any
    elsewhere: _Planned | None = None  # what other processes use


class SparseNetwork(nn.Module):
    """Computes what a network computes in eval mode, on the CPU in float32, with the weights that are not zero.

    Each layer runs the fastest way: all that come into question are measured when images of a shape come for the first
    time (see `choices`); then dense engines that may be faster are timed on the whole (see `engine`). Any number of
    threads may call it at a time.

    Args:
        model: a network; not changed. torch.fx must be able to trace it.
        rivals: the dense engines that run the network where they are faster; None for its own loops alone.

    Raises:
        StarfireError: it cannot be traced, or llvmlite is not installed.
    """

    def __init__(self, model: nn.Module, *, rivals: Rivals | None = None) -> None:
        super().__init__()
        if reason := compiler.missing():
            raise StarfireError(f"sparse execution: {reason}")
        self._network = TracedNetwork(model)
        self._rivals = rivals
        self._plans: dict[tuple[Shape, bool, int], _Planned] = {}
        self._lock = Lock()
        self.train(False)

    def forward(self, images: Tensor) -> Any:
        """The network's output for images (N, C, H, W), float32 on the CPU."""
        if images.device.type != "cpu" or images.dtype != torch.float32 or images.ndim != 4:
            raise StarfireError(
                f"a sparse network takes float32 images (N, C, H, W) on the CPU, not {images.dtype} "
                f"{tuple(images.shape)} on {images.device}"
            )
        with torch.inference_mode():
            images = in_memory(images)
            planned = self._plan(tuple(images.shape))
            if len(images) > planned.plan.at_once:
                return torch.cat([self.forward(part) for part in torch.split(images, planned.plan.at_once)])
            run = planned.run if planned.run is not None and len(images) else planned.plan.run
            return run(images)

    def train(self, mode: bool = True) -> SparseNetwork:
        """Accept `train(False)` only: without gradients nothing can be learned."""
        if mode:
            raise StarfireError("a sparse network only predicts; train the dense one it was made from")
        return super().train(False)

    def choices(self, images: Shape) -> list[Choice]:
        """The choice of each operation for images of a shape (N, C, H, W), and the times measured."""
        return self._plan(_checked(images)).choices

    def engine(self, images: Shape) -> NetworkEngine:
        """The engine that runs the network for images of a shape (N, C, H, W), and the times of those compared."""
        return self._plan(_checked(images)).engine

    def extra_repr(self) -> str:
        """The engines chosen for the shapes of images that have come so far."""
        lines = []
        for (size, alone, threads), planned in list(self._plans.items()):
            parts = ", ".join(f"{n} {how}" for how, n in Counter(c.how for c in planned.choices).most_common())
            which = "one image" if alone else "several images"
            lines.append(f"{which} of {'x'.join(map(str, size))}, {threads} threads: {planned.engine.name} ({parts})")
        return "\n".join(lines)

    def _plan(self, images: Shape) -> _Planned:
        key = (images[1:], images[0] == 1, torch.get_num_threads())
        if key not in self._plans:
            with self._lock, torch.inference_mode():
                if key not in self._plans:
                    self._plans[key] = self._planned(images)
        found = self._plans[key]
        if found.process not in (None, os.getpid()):
            assert found.elsewhere is not None
            found = self._plans[key] = found.elsewhere
        return found

    def _planned(self, images: Shape) -> _Planned:
        try:
            shapes = self._network.shapes(images)
        except RuntimeError as error:
            raise StarfireError(f"the network does not take images of shape {images}: {one_line(error)}") from None
        operations = self._network.operations(shapes)
        maps = Maps(operations, shapes)
        too_large = maps.too_large(operations)
        if too_large:
            operations = self._network.operations(shapes, in_torch=too_large)
            maps = Maps(operations, shapes)
        made = choosing.choose(operations, maps, alone=images[0] == 1, in_loops=self._network.in_loops)
        plan = ExecutionPlan(self._network, images, operations, maps, made)
        own = _Planned(plan=plan, choices=made, engine=NetworkEngine(name=OWN, seconds={}, images=images[0]))
        if self._rivals is None or too_large or not self._network.in_loops:
            return own
        chosen = choose_engine(self._network, images, plan, made, self._rivals)
        return _Planned(
            plan=plan,
            choices=chosen.choices,
            engine=chosen.engine,
            run=chosen.run,
            process=os.getpid() if chosen.engine.name == ONNX else None,  # its threads are not there after a fork
            elsewhere=own,
        )


def _checked(images: Shape) -> Shape:
    if (
        not isinstance(images, tuple | list)
        or len(images) != 4
        or not all(isinstance(size, int) and size > 0 for size in images)
    ):
        raise StarfireError(f"{images!r} is no shape of images (N, C, H, W), such as (1, 3, 224, 224)")
    return tuple(images)


def sparsify(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None, *, rivals: Rivals | None = None
) -> SparseNetwork:
    """A network that runs from the live weights of `model`, which stays as it is.

    Args:
        model: any module that torch.fx can trace.
        masks: by the names of parameters, bool, True is alive: weights that count as zero where it is False. Without
            masks the zeros that are there count.
        rivals: see `SparseNetwork`.

    Raises:
        StarfireError: see `SparseNetwork`; or a mask that fits no parameter.
    """
    if masks:
        model = _masked(model, masks_everywhere(model, masks))
    return SparseNetwork(model, rivals=rivals)


def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    import copy

    twin = copy.deepcopy(model)
    parameters = parameters_of(twin)
    with torch.no_grad():
        for name, alive in masks.items():
            if not isinstance(alive, Tensor) or alive.dtype != torch.bool:
                raise StarfireError(f"mask {name!r} is no tensor of bool (True is alive)")
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != alive.shape:
                has = "no such parameter" if parameter is None else f"a parameter of shape {tuple(parameter.shape)}"
                raise StarfireError(f"mask {name!r} {tuple(alive.shape)} does not fit: the model has {has}")
            parameter.masked_fill_(~alive.to(parameter.device), 0.0)
    return twin
