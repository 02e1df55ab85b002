"""Samples of what layers see: a network is run up to the layers that are watched, and their inputs are taken at random
places.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import pad

Seen = Callable[[tuple[Any, ...]], Callable[[Any], None] | None]
"""A function called with a node's arguments before it runs; what it returns, if anything, is called with the result."""


@torch.no_grad()
def run_until(model: nn.Module, graph: fx.Graph, images: Tensor, watched: Sequence[tuple[fx.Node, Seen]]) -> None:
    """Run a network on images until every node of `watched` was seen.

    Args:
        model: with the graph's modules, in eval mode, on the device of the images.
        graph: of the network.
        images: as the network takes them, (N, 3, H, W).
        watched: whom to tell of which node.
    """
    with contextlib.suppress(_Enough):
        _Run(model, graph, watched).run(images)


class _Enough(Exception):
    pass


class _Run(fx.Interpreter):
    def __init__(self, model: nn.Module, graph: fx.Graph, watched: Sequence[tuple[fx.Node, Seen]]) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False
        self.watched: dict[fx.Node, list[Seen]] = {}
        for node, seen in watched:
            self.watched.setdefault(node, []).append(seen)
        self.left = len(self.watched)

    def run_node(self, n: fx.Node) -> Any:
        if n not in self.watched:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        told = [seen(args) for seen in self.watched[n]]
        result = super().run_node(n)
        for after in told:
            if after is not None:
                after(result)
        self.left -= 1
        if not self.left:
            raise _Enough
        return result


def generator(seed: int, *names: object) -> torch.Generator:
    """Random numbers that depend on `seed` and `names` only."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_places(images: int, total: int, each: int, draws: torch.Generator) -> Tensor:
    """Places of an output map for each image, (N, P): `each` of them by chance, or all of a smaller map.

    Args:
        images: how many.
        total: places of the map.
        each: places an image.
        draws: of random numbers.
    """
    if total <= each:
        return torch.arange(total).expand(images, total)
    return torch.randint(total, (images, each), generator=draws)


def inputs_at(layer: nn.Module, x: Tensor, places_NP: Tensor, width: int) -> Tensor:
    """The inputs that a layer's output has at some places: (N * P, I, T), T taps of the window.

    Args:
        layer: a convolution of one group, or a linear layer, of which T is 1.
        x: what it reads, (N, I, H, W) or (N, I).
        places_NP: of the output, row by row.
        width: of the output map.
    """
    if not isinstance(layer, nn.Conv2d):
        return x[:, :, None]
    zeros = layer.padding_mode == "zeros"
    x = pad(x, layer._reversed_padding_repeated_twice, mode="constant" if zeros else layer.padding_mode)
    (R, S), (down, right), (tall, wide) = layer.kernel_size, layer.stride, layer.dilation
    places = places_NP.to(x.device)
    rows = (places // width * down)[:, :, None, None] + (torch.arange(R, device=x.device) * tall)[:, None]
    columns = (places % width * right)[:, :, None, None] + torch.arange(S, device=x.device) * wide
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    return x[image, :, rows, columns].flatten(0, 1).flatten(1, 2).mT  # (N, P, R, S, I) before


def outputs_at(y: Tensor, places_NP: Tensor) -> Tensor:
    """A map's values at places, (N * P, K), of (N, K, H, W) or (N, K)."""
    if y.ndim == 2:
        return y
    index = places_NP.to(y.device)[:, None].expand(-1, y.shape[1], -1)
    return y.flatten(2).gather(2, index).mT.flatten(0, 1)
