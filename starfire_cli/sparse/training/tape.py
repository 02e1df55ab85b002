"""One step of a network, forward and backward: which values are kept, and how gradients meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from starfire_cli.errors import StarfireError
from starfire_cli.sparse.training.convolution import LiveConvolution
from starfire_cli.sparse.training.norm import MapNorm, NormSaved
from starfire_cli.sparse.training.reading import ConvolutionNode, NormNode, Segment, TracedTraining
from starfire_cli.sparse.training.segment import SegmentSaved, run_segment, segment_gradients
from starfire_cli.sparse.training.values import MapValue


class Layers:
    """The layers of a network for maps of one size.

    Args:
        convolutions: by node.
        norms: by node.
        held: images that a map has room for.
    """

    def __init__(
        self, convolutions: Mapping[fx.Node, LiveConvolution], norms: Mapping[fx.Node, MapNorm], held: int
    ) -> None:
        self.convolutions, self.norms, self.held = convolutions, norms, held


class Tape:
    """One pass forward, and what is kept of it for backward.

    Args:
        reading: of the network.
        layers: that run it.
        keep: whether there will be a pass backward.
        wanted: parameters whose gradients are wanted, by id.
        pixels: whether the gradient of the images is wanted.
        masks: bool, of parameters with dead weights, by id.
    """

    def __init__(
        self,
        reading: TracedTraining,
        layers: Layers,
        *,
        keep: bool,
        wanted: set[int],
        pixels: bool,
        masks: Mapping[int, Tensor],
    ) -> None:
        self._reading, self._layers, self._keep, self._wanted, self._pixels = reading, layers, keep, wanted, pixels
        self._saved: list[Any] = []
        self._depends: set[fx.Node] = set()  # on something whose gradient is wanted
        self._images, self._masks = 0, masks
        self._layout = torch.contiguous_format

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The network's result."""
        r = self._reading
        self._images = len(images_NCHW)
        if images_NCHW.is_contiguous(memory_format=torch.channels_last) and not images_NCHW.is_contiguous():
            self._layout = torch.channels_last
        values: dict[fx.Node, Any] = {r.input: self._plain(images_NCHW.detach())}
        if self._pixels:
            self._depends.add(r.input)
        for number, operation in enumerate(r.operations):
            saved: Any
            if isinstance(operation, ConvolutionNode):
                saved = self._convolve(operation, values)
            elif isinstance(operation, NormNode):
                saved = self._normalize(operation, values)
            else:
                saved = self._segment(operation, values)
            self._saved.append(saved if self._keep else None)
            for node in [node for node in values if r.last_use.get(node, -1) <= number]:
                del values[node]
        result = values[r.output]
        if not isinstance(result, MapValue):
            raise StarfireError("the network's result is no tensor")
        return result.tensor().contiguous()

    def backward(self, gradient: Tensor) -> tuple[Tensor | None, dict[int, Tensor]]:
        """The gradients of the images and, by id, of the parameters."""
        r = self._reading
        if not self._saved:
            raise RuntimeError("sparse compute goes backward once; what it kept of the pass forward is freed")
        gradients: dict[fx.Node, MapValue] = {r.output: self._plain(gradient)}
        found: dict[int, Tensor] = {}
        for operation in reversed(r.operations):
            saved = self._saved.pop()
            if isinstance(operation, ConvolutionNode):
                self._convolve_back(operation, saved, gradients, found)
            elif isinstance(operation, NormNode):
                self._normalize_back(operation, saved, gradients, found)
            else:
                self._segment_back(operation, saved, gradients, found)
        pixels = gradients.pop(r.input, None)
        return (None if pixels is None or not self._pixels else pixels.tensor().contiguous()), found

    def _plain(self, tensor: Tensor) -> MapValue:
        return MapValue(images=self._images, held=self._layers.held, plain=tensor)

    def _map(self, values: Tensor) -> MapValue:
        return MapValue(images=self._images, held=self._layers.held, as_map=values, owned=True)

    def _mark(self, node: fx.Node, inputs: tuple[fx.Node, ...], parameters: list[Tensor]) -> bool:
        depends = any(i in self._depends for i in inputs) or any(id(p) in self._wanted for p in parameters)
        if depends:
            self._depends.add(node)
        return depends

    def _convolve(self, operation: ConvolutionNode, values: dict[fx.Node, Any]) -> Tensor | None:
        layer = self._layers.convolutions[operation.node]
        x = values[operation.source].map()
        values[operation.node] = self._map(layer.forward(x, self._images))
        self._mark(operation.node, (operation.source,), list(layer.module.parameters()))
        return x if id(layer.weight) in self._wanted else None

    def _convolve_back(
        self,
        operation: ConvolutionNode,
        x: Tensor | None,
        gradients: dict[fx.Node, MapValue],
        found: dict[int, Tensor],
    ) -> None:
        given = gradients.pop(operation.node, None)
        if given is None:
            return
        layer, dy = self._layers.convolutions[operation.node], given.map()
        if x is not None:
            _collect(found, layer.weight, layer.weight_gradient(x, dy))
        bias = layer.module.bias
        if bias is not None and id(bias) in self._wanted:
            _collect(found, bias, dy.sum((1, 2, 3)))
        if operation.source in self._depends:
            before = gradients.get(operation.source)
            into = before.map() if before is not None and before.owned else None
            made = self._map(layer.input_gradient(dy, into))
            gradients[operation.source] = made if before is None or into is not None else made.added(before)

    def _normalize(self, operation: NormNode, values: dict[fx.Node, Any]) -> NormSaved:
        layer = self._layers.norms[operation.node]
        other = None if operation.other is None else values[operation.other].map()
        made, saved = layer.forward(values[operation.source].map(), other, self._images)
        values[operation.node] = self._map(made)
        inputs = (operation.source,) if operation.other is None else (operation.source, operation.other)
        self._mark(operation.node, inputs, list(layer.module.parameters()))
        return saved

    def _normalize_back(
        self, operation: NormNode, saved: NormSaved, gradients: dict[fx.Node, MapValue], found: dict[int, Tensor]
    ) -> None:
        given = gradients.pop(operation.node, None)
        if given is None:
            return
        layer, other, dy = self._layers.norms[operation.node], operation.other, given.map()
        fork = other is not None and other in self._depends
        before = gradients.get(other) if fork and other is not None else None
        into = before.map() if before is not None and before.owned else None
        dx, branch, weight, bias = layer.backward(saved, dy, into, fork=fork, owned=given.owned)
        for parameter, made in ((layer.module.weight, weight), (layer.module.bias, bias)):
            if parameter is not None and id(parameter) in self._wanted:
                _collect(found, parameter, made)
        if branch is not None and other is not None:
            made_ = self._map(branch)
            gradients[other] = made_ if before is None or into is not None else made_.added(before)
        if operation.source in self._depends:
            self._add(gradients, operation.source, self._map(dx))

    def _add(self, gradients: dict[fx.Node, MapValue], node: fx.Node, made: MapValue) -> None:
        before = gradients.get(node)
        gradients[node] = made if before is None else before.added(made)

    def _segment(self, segment: Segment, values: dict[fx.Node, Any]) -> SegmentSaved:
        inputs = {
            n: values[n].tensor().detach() if isinstance(values[n], MapValue) else values[n] for n in segment.inputs
        }
        wanted = self._wanted if self._keep else None
        results, saved = run_segment(
            self._reading.root, segment, inputs, track=self._depends, wanted=wanted, layout=self._layout
        )
        self._depends |= saved.made.keys()
        for node, result in results.items():
            values[node] = self._plain(result.detach()) if isinstance(result, Tensor) else result
        return saved

    def _segment_back(
        self, segment: Segment, saved: SegmentSaved, gradients: dict[fx.Node, MapValue], found: dict[int, Tensor]
    ) -> None:
        given = {node: gradients.pop(node).tensor() for node in segment.outputs if node in gradients}
        inputs, parameters = segment_gradients(saved, given)
        for node, gradient in inputs.items():
            self._add(gradients, node, self._plain(gradient))
        for parameter, gradient in parameters:
            mask = self._masks.get(id(parameter))
            _collect(found, parameter, gradient if mask is None else gradient * mask)


def _collect(found: dict[int, Tensor], parameter: Tensor, gradient: Tensor) -> None:
    key = id(parameter)
    found[key] = gradient if key not in found else found[key] + gradient
