"""Shapes of all values of a traced network, and which of its layers the loops cannot take there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from starfire_cli.sparse.training.reading import ConvolutionNode, NormNode, Segment, TracedTraining
from starfire_cli.sparse.training.segment import refuse_several

_IMAGES = 2  # so that what has one of something for all images is told apart


class Shapes(fx.Interpreter):
    """The shape of every value, found by a pass in eval mode that changes nothing.

    Args:
        reading: of the network.
        pixels: of an image, (C, H, W).

    Raises StarfireError where several tensors go from torch's part to another at a time.
    """

    @torch.no_grad()
    def __init__(self, reading: TracedTraining, pixels: Sequence[int]) -> None:
        super().__init__(reading.root)
        self._reading = reading
        self._found: dict[fx.Node, Tensor] = {}
        self._ends = {node for o in reading.operations if isinstance(o, Segment) for node in o.outputs}
        modes = [(module, module.training) for module in self.module.modules()]
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        try:
            self.module.eval()
            with torch.random.fork_rng([]):
                self.run(torch.zeros(_IMAGES, *pixels))
        finally:
            for module, training in modes:
                module.training = training
            for buffer, before in buffers:
                if not torch.equal(buffer, before):  # by F.batch_norm, traced in training
                    buffer.copy_(before)

    def pixels(self, node: fx.Node) -> tuple[int, int]:
        """(H, W) of a map."""
        _, _, rows, columns = self._found[node].shape
        return rows, columns

    def odd_layers(self) -> set[str]:
        """Names of convolutions and BatchNorm layers whose input is no map with the network's images."""
        layers = [o for o in self._reading.operations if isinstance(o, ConvolutionNode | NormNode)]
        return {o.name for o in layers if not self._is_map(o.source)}

    def odd_sums(self) -> set[str]:
        """Names of BatchNorm layers behind which something of another shape or type is added."""
        norms = [o for o in self._reading.operations if isinstance(o, NormNode)]
        return {o.name for o in norms if o.other is not None and not self._alike(o.source, o.other)}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._ends:
            refuse_several(n, result)
        if isinstance(result, Tensor):
            self._found[n] = torch.empty_like(result, device="meta")
        return result

    def _is_map(self, node: fx.Node) -> bool:
        found = self._found.get(node)
        return found is not None and found.dim() == 4 and len(found) == _IMAGES and found.dtype == torch.float32

    def _alike(self, node: fx.Node, other: fx.Node) -> bool:
        return self._is_map(other) and self._found[other].shape == self._found[node].shape
