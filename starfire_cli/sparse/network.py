"""`SparseNetwork`: a network whose convolutions and linear layers run from their live weights."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.ties import masks_everywhere, parameters_of
from starfire_cli.sparse import choosing, emit
from starfire_cli.sparse.patterns import Shape
from starfire_cli.sparse.plan import Choice, ExecutionPlan, Maps
from starfire_cli.sparse.reading import TracedNetwork
from starfire_cli.sparse.weights import in_memory


class SparseNetwork(nn.Module):
    """Computes what a network computes in eval mode, on the CPU in float32, with the weights that are not zero.

    Each layer runs the fastest way: all that come into question are measured when images of a shape come for the first
    time (see `choices`). Any number of threads may call it at a time; results do not depend on how many images come
    together, or on the number of threads.

    Args:
        model: a network; not changed. torch.fx must be able to trace it.

    Raises:
        StarfireError: it cannot be traced, or llvmlite is not installed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if reason := emit.missing():
            raise StarfireError(f"sparse execution: {reason}")
        self._network = TracedNetwork(model)
        self._plans: dict[Any, tuple[ExecutionPlan, list[Choice]]] = {}
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
            plan, _ = self._plan(tuple(images.shape))
            if len(images) <= plan.at_once:
                return plan.run(images)
            return torch.cat([self.forward(part) for part in torch.split(images, plan.at_once)])

    def train(self, mode: bool = True) -> SparseNetwork:
        """Accept `train(False)` only: without gradients nothing can be learned."""
        if mode:
            raise StarfireError("a sparse network only predicts; train the dense one it was made from")
        return super().train(False)

    def choices(self, images: Shape) -> list[Choice]:
        """The choice of each operation for images of a shape (N, C, H, W), and the times measured."""
        if (
            not isinstance(images, tuple | list)
            or len(images) != 4
            or not all(isinstance(size, int) and size > 0 for size in images)
        ):
            raise StarfireError(f"{images!r} is no shape of images (N, C, H, W), such as (1, 3, 224, 224)")
        return self._plan(tuple(images))[1]

    def _plan(self, images: Shape) -> tuple[ExecutionPlan, list[Choice]]:
        key = (images[1:], images[0] == 1, torch.get_num_threads())
        if key not in self._plans:
            with self._lock, torch.inference_mode():
                if key not in self._plans:
                    shapes = self._network.shapes(images)
                    operations = self._network.operations(shapes)
                    maps = Maps(operations, shapes)
                    if too_large := maps.too_large(operations):
                        operations = self._network.operations(shapes, in_torch=too_large)
                        maps = Maps(operations, shapes)
                    made = choosing.choose(operations, maps, alone=images[0] == 1, in_loops=self._network.in_loops)
                    plan = ExecutionPlan(self._network, images, operations, maps, made)
                    self._plans[key] = plan, made
        return self._plans[key]


def sparsify(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> SparseNetwork:
    """A network that runs from the live weights of `model`, which stays as it is.

    Args:
        model: any module that torch.fx can trace.
        masks: by the names of parameters, bool, True is alive: weights that count as zero where it is False. Without
            masks the zeros that are there count.

    Raises:
        StarfireError: see `SparseNetwork`; or a mask that fits no parameter.
    """
    if masks:
        model = _masked(model, masks_everywhere(model, masks))
    return SparseNetwork(model)


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
