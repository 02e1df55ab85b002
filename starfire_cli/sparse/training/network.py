"""A network whose training steps go over live weights only."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from starfire_cli.errors import StarfireError
from starfire_cli.heap import trim_heap
from starfire_cli.pruning.channels.graph import fitting_image, trace
from starfire_cli.sparse import compiler
from starfire_cli.sparse.aliases import check_reading, mutates_aliases
from starfire_cli.sparse.training.checks import check_gradients, check_python
from starfire_cli.sparse.training.choosing import choose_ways
from starfire_cli.sparse.training.convolution import PASSES, LiveConvolution, Pass, Way, way_of
from starfire_cli.sparse.training.geometry import ConvShape, Pair
from starfire_cli.sparse.training.map_memory import MAP_MEMORY
from starfire_cli.sparse.training.maps import padded
from starfire_cli.sparse.training.norm import MapNorm
from starfire_cli.sparse.training.reading import ConvolutionNode, NormNode, TracedTraining, padding_of, read
from starfire_cli.sparse.training.shapes import Shapes
from starfire_cli.sparse.training.tape import Layers, Tape


class SparseTraining(nn.Module):
    """A module that computes what its model computes; while it is engaged, over live weights only.

    Parameters, buffers and gradients are the model's own.

    Args:
        model: on a CPU, in float32.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.engaged = False
        self._masks: dict[int, Tensor] = {}
        self._capacity = 0
        self._readings: dict[bool, TracedTraining] = {}
        self._apart: set[str] = set()  # BatchNorm layers whose sums the loops cannot take
        self._in_torch: set[str] = set()  # layers that they cannot take
        self._layers: dict[tuple[bool, tuple[int, ...], int], Layers] = {}
        self._convolutions: dict[tuple[str, Pair, int], LiveConvolution] = {}
        self._ways: dict[str, tuple[bool, dict[Pass, Way]]] = {}

    def engage(self, masks: Mapping[nn.Parameter, Tensor], images: int) -> None:
        """From now on compute over live weights; call it anew when masks change.

        Args:
            masks: bool, of weights with dead ones.
            images: in a batch; smaller ones are computed with room for as many.

        Raises StarfireError with the reason where the network cannot be.
        """
        if not self.engaged:
            trim_heap()  # which held the maps of dense steps
        if not self._readings:
            self.check()
            gc.collect()  # a trace's copy of the network refers to itself
            trim_heap()
        self._masks = {id(weight): mask for weight, mask in masks.items()}
        for layer in self._convolutions.values():
            layer.update(self._masks.get(id(layer.weight)))
        self._capacity, self.engaged = images, True

    def release_memory(self) -> None:
        """Give back to the system what maps leave from step to step; the next step asks for it anew."""
        MAP_MEMORY.release()

    def choose(self, pixels: Sequence[int]) -> None:
        """Time the ways of each layer, for images (C, H, W) and whole batches, and keep the fastest."""
        self._plan(torch.empty((self._capacity, *pixels), device="meta"))
        choose_ways(self._convolutions.values())
        self.release_memory()
        trim_heap()

    def ways(self) -> dict[str, dict[str, Any]]:
        """The ways of all layers, as plain values; `take_ways` takes them back."""
        found: dict[str, dict[str, Any]] = {}
        for (name, pixels, held), layer in self._convolutions.items():
            key = f"{name} {pixels[0]}x{pixels[1]} {held}"
            found[key] = {"whole": layer.whole, **{each: layer.way(each).text for each in PASSES}}
        return found

    def looped(self) -> dict[nn.Module, float]:
        """By layer, the share of its three passes that loops compute; the others are torch's."""
        found: dict[nn.Module, float] = {}
        for layer in self._convolutions.values():
            found[layer.module] = sum(layer.way(each).tile is not None for each in PASSES) / len(PASSES)
        return found

    def take_ways(self, ways: Mapping[str, Mapping[str, Any]]) -> None:
        """From now on compute as another run did. Raises ValueError for what is no way."""
        self._ways = {
            key: (bool(known["whole"]), {each: way_of(known[each]) for each in PASSES}) for key, known in ways.items()
        }
        self._convolutions.clear()
        self._layers.clear()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The model's result."""
        if not self.engaged or not self._takes(images_NCHW):
            self.release_memory()
            result: Tensor = self.model(images_NCHW)
            return result
        keep = torch.is_grad_enabled()
        parameters = [p for p in self.model.parameters() if p.requires_grad] if keep else []
        pixels = keep and images_NCHW.requires_grad
        layers = self._plan(images_NCHW)
        reading = self._readings[self.model.training]  # which a plan may have changed
        keep = keep and (pixels or bool(parameters))
        tape = Tape(reading, layers, keep=keep, wanted={id(p) for p in parameters}, pixels=pixels, masks=self._masks)
        made: Tensor = _Step.apply(tape, images_NCHW, *parameters)
        return made

    def _takes(self, images: Tensor) -> bool:
        fits = images.dim() == 4 and images.dtype == torch.float32 and images.device.type == "cpu"
        return fits and len(images) > 0 and 2 * len(images) > self._capacity and not torch.is_autocast_enabled("cpu")

    def check(self) -> None:
        """Raise StarfireError with the reason where the network cannot be computed this way."""
        if reason := compiler.missing():
            raise StarfireError(reason)
        if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in self.model.parameters()):
            raise StarfireError("sparse compute takes networks in float32 on a CPU")
        copy = trace(self.model)
        check_python(self.model)
        check_reading(copy)
        check_gradients(copy)
        if mutates_aliases(copy):
            raise StarfireError("the network changes a tensor in place that something else reads")
        self._read()
        try:
            pixels = fitting_image(copy).shape[1:]
        except StarfireError:  # images of another size, which the first step will have
            return
        self._measured_reading(pixels)

    def _read(self) -> TracedTraining:
        mode = self.model.training
        if mode not in self._readings:
            self._readings[mode] = read(self.model, self._apart, self._in_torch)
        return self._readings[mode]

    def _plan(self, images: Tensor) -> Layers:
        held = padded(max(self._capacity, len(images)), compiler.lanes())
        key = self.model.training, tuple(images.shape[1:]), held
        if key not in self._layers:
            reading, shapes = self._measured_reading(images.shape[1:])
            convolutions, norms = {}, {}
            for operation in reading.operations:
                if isinstance(operation, ConvolutionNode):
                    pixels = shapes.pixels(operation.source)
                    convolutions[operation.node] = self._convolution(operation.name, pixels, held)
                elif isinstance(operation, NormNode):
                    module = self.model.get_submodule(operation.name)
                    assert isinstance(module, nn.BatchNorm2d)
                    add = operation.other is not None
                    norms[operation.node] = MapNorm(module, add=add, relu=operation.relu)
            self._layers[key] = Layers(convolutions, norms, held)
        return self._layers[key]

    def _measured_reading(self, pixels: Sequence[int]) -> tuple[TracedTraining, Shapes]:
        """The reading for images (C, H, W): layers stay in torch where the loops cannot take what is given to them."""
        reading = self._read()
        shapes = Shapes(reading, pixels)
        apart, in_torch = self._apart | shapes.odd_sums(), self._in_torch | shapes.odd_layers()
        if (apart, in_torch) != (self._apart, self._in_torch):
            self._apart, self._in_torch = apart, in_torch
            self._readings.clear()
            self._layers.clear()
            reading = self._read()
            shapes = Shapes(reading, pixels)
        return reading, shapes

    def _convolution(self, name: str, pixels: Pair, held: int) -> LiveConvolution:
        key = name, pixels, held
        if key not in self._convolutions:
            m: Any = self.model.get_submodule(name)
            shape = ConvShape(
                size=m.kernel_size,
                stride=m.stride,
                padding=padding_of(m) or (0, 0),
                dilation=m.dilation,
                pixels=pixels,
            )
            made = LiveConvolution(m, shape, held)
            whole, ways = self._ways.get(f"{name} {pixels[0]}x{pixels[1]} {held}", (None, {}))
            made.ways = dict(ways)
            made.update(self._masks.get(id(m.weight)), whole)
            self._convolutions[key] = made
        return self._convolutions[key]


class _Step(torch.autograd.Function):
    """The network as one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, images: Tensor, *parameters: Tensor) -> Tensor:
        ctx.tape, ctx.parameters = tape, parameters
        return tape.forward(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pixels, found = ctx.tape.backward(gradient)
        return None, pixels, *(found.get(id(p)) for p in ctx.parameters)
