"""BatchNorm over maps, with an addition and ReLU behind it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starfire_cli.sparse import compiler
from starfire_cli.sparse.training.launch import Launch, Loop
from starfire_cli.sparse.training.maps import like
from starfire_cli.sparse.training.norm_loops import NormKind, normalize, normalize_backward


@dataclass(frozen=True, kw_only=True)
class NormSaved:
    """The values that a pass backward needs.

    Args:
        source: the map that was normalised.
        output: what came out; None where it is not needed.
        mean: (C,).
        variance: (C,).
        weight: (C,).
        bias: (C,).
        batch: whether mean and variance are the batch's.
        images: in the maps.
    """

    source: Tensor
    output: Tensor | None
    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    batch: bool
    images: int


class MapNorm:
    """A BatchNorm layer over maps of one size.

    Args:
        module: whose parameters and statistics are used.
        add: another map is added behind it.
        relu: ReLU follows.
    """

    def __init__(self, module: nn.BatchNorm2d, *, add: bool, relu: bool) -> None:
        self.module, self.add, self.relu = module, add, relu
        self._launches: dict[tuple[str, bool, int, int], Launch] = {}

    def forward(self, x: Tensor, other: Tensor | None, images: int) -> tuple[Tensor, NormSaved]:
        """Normalised by the batch's statistics where torch would, else by the running ones.

        Args:
            x: the map.
            other: what is added.
            images: in the map.

        Raises ValueError for a single value per channel, as torch does.
        """
        m = self.module
        C, H, W, N = x.shape
        batch = m.training or m.running_mean is None
        count = H * W * images
        if m.training and count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {[images, C, H, W]}"
            )
        if batch:
            mean, variance = torch.empty(C), torch.empty(C)
        else:
            assert m.running_mean is not None and m.running_var is not None
            mean, variance = m.running_mean.clone(), m.running_var.clone()
        weight = torch.ones(C) if m.weight is None else m.weight.detach()
        bias = torch.zeros(C) if m.bias is None else m.bias.detach()
        y = like(x)
        launch = self._launch("forward", images < N, C, 0)
        launch.run(
            source=x,
            target=y,
            other=y if other is None else other,
            **self._shared(x, images, count, mean, variance, weight, bias, batch),
        )
        if m.training and m.track_running_stats:
            self._keep(mean, variance, count)
        saved = NormSaved(
            source=x,
            output=y if self.relu and self.add else None,
            mean=mean,
            variance=variance,
            weight=weight.clone(),
            bias=bias.clone(),
            batch=batch,
            images=images,
        )
        return y, saved

    def backward(
        self, saved: NormSaved, dy: Tensor, other: Tensor | None, *, fork: bool, owned: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Gradients of the map, of what was added, of weight and bias.

        Args:
            saved: by `forward`.
            dy: of the output map.
            other: a gradient of what was added, to which this one is added.
            fork: whether the gradient of what was added is wanted.
            owned: whether `dy` may be overwritten.
        """
        x = saved.source
        C, H, W, N = x.shape
        branch = other
        if fork and other is None:
            branch = dy if owned else like(x)
        dx = dy if owned and branch is not dy else like(x)
        made = torch.empty(2, C)
        launch = self._launch("backward", saved.images < N, C, 0 if not fork else 1 if other is None else 2)
        launch.run(
            gradient=dy,
            source=x,
            output=x if saved.output is None else saved.output,
            target=dx,
            other=dx if branch is None else branch,
            weight_gradient=made[0],
            bias_gradient=made[1],
            **self._shared(
                x, saved.images, H * W * saved.images, saved.mean, saved.variance, saved.weight, saved.bias, saved.batch
            ),
        )
        return dx, branch if fork else None, made[0], made[1]

    def _launch(self, way: str, padded: bool, channels: int, fork: int) -> Launch:
        key = way, padded, channels, fork
        if key not in self._launches:
            kind, lanes = NormKind(add=self.add, relu=self.relu, padded=padded), compiler.lanes()
            forward = way == "forward"
            code = normalize(kind, lanes=lanes) if forward else normalize_backward(kind, lanes=lanes, fork=fork)
            self._launches[key] = Launch([Loop(code=code, tasks=channels)])
        return self._launches[key]

    def _shared(
        self,
        x: Tensor,
        images: int,
        count: int,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor,
        bias: Tensor,
        batch: bool,
    ) -> dict[str, Tensor | int]:
        _, H, W, N = x.shape
        on = torch.zeros(N)
        on[:images] = 1
        return {
            "plane": 4 * x.stride(0),
            "pixels": H * W,
            "vectors": N // compiler.lanes(),
            "count": _bits(float(count)),
            "eps": _bits(self.module.eps),
            "images": on,
            "mean": mean,
            "variance": variance,
            "weight": weight,
            "bias": bias,
            "batch": int(batch),
        }

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """The running statistics, as torch keeps them."""
        m = self.module
        assert m.running_mean is not None and m.running_var is not None and m.num_batches_tracked is not None
        m.num_batches_tracked.add_(1)
        share = m.momentum if m.momentum is not None else 1.0 / float(m.num_batches_tracked)
        m.running_mean.mul_(1 - share).add_(mean, alpha=share)
        m.running_var.mul_(1 - share).add_(variance, alpha=share * count / (count - 1))


def _bits(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")
