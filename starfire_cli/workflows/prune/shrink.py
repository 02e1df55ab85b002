"""What removing dead channels for good gains: parameters, multiply-accumulates, and time, measured."""

from __future__ import annotations

from collections import Counter
from time import perf_counter

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruning import Masks
from starfire_cli.pruning.channels.recipe import ShrinkRecipe
from starfire_cli.pruning.channels.shrink import shrink
from starfire_cli.records.prune import Shrunk

_BATCH = 8
_ROUNDS = 20
_ROUNDING = 1e-3  # over the largest output, in the network's own precision


def shrink_network(
    net: nn.Module, masks: Masks, image: tuple[int, int, int], device: torch.device, real: Tensor | None
) -> tuple[nn.Module, Masks, ShrinkRecipe, Shrunk]:
    """Shrink `net`, and compare the two.

    Args:
        net: on the CPU, in eval mode; not changed.
        masks: what is dead in it.
        image: (channels, height, width) that it takes.
        device: where time is measured.
        real: images as `net` takes them, on which outputs are compared as well.

    Raises StarfireError if outputs differ by more than rounding, or no image of that size fits.
    """
    report = shrink(net, masks, example=torch.zeros(1, *image))
    small = report.model.eval()
    difference = None if real is None else _difference(net, small, real)
    if difference is not None and not difference <= _ROUNDING:
        raise StarfireError(
            f"the shrunk network differs by {difference:.1e} of the largest output; nothing was written"
        )
    stayed: Counter[str] = Counter()
    for layer in report.layers:
        stayed.update(layer.stayed)
    facts = Shrunk(
        parameters=report.parameters,
        macs=report.macs,
        input=image,
        milliseconds=_milliseconds((net, small), image, device),
        batch=_BATCH,
        device=str(device),
        difference=report.difference,
        difference_real=difference,
        stayed=dict(stayed),
        declined=report.declined,
    )
    return small, report.masks, report.recipe, facts


@torch.no_grad()
def _difference(net: nn.Module, small: nn.Module, images: Tensor) -> float:
    before, after = net(images), small(images)
    return float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))


@torch.no_grad()
def _milliseconds(
    nets: tuple[nn.Module, nn.Module], image: tuple[int, int, int], device: torch.device
) -> tuple[float, float]:
    """The fastest forward pass of each, taken in turns: what else the machine does only ever slows one."""
    homes = [next(net.parameters()).device for net in nets]
    images = torch.rand(_BATCH, *image, device=device)
    times: tuple[list[float], list[float]] = ([], [])
    for net in nets:
        net.to(device)
    for _ in range(_ROUNDS):
        for net, taken in zip(nets, times, strict=True):
            started = perf_counter()
            net(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(1000 * (perf_counter() - started))
    for net, home in zip(nets, homes, strict=True):
        net.to(home)
    return min(times[0]), min(times[1])
