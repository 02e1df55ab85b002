"""What removing dead channels for good gains: parameters, multiply-accumulates, and time, measured."""

from __future__ import annotations

import statistics
from time import perf_counter

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruned import Shrunk
from starfire_cli.pruning import Masks
from starfire_cli.pruning.recipe import Recipe
from starfire_cli.pruning.shrink import shrink

_BATCH = 8
_ROUNDING = 1e-3  # over the largest output, in the network's own precision


def shrink_network(
    net: nn.Module, masks: Masks, image: tuple[int, int, int], device: torch.device, real: Tensor | None
) -> tuple[nn.Module, Masks, Recipe, Shrunk]:
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
    facts = Shrunk(
        parameters=report.parameters,
        macs=report.macs,
        input=image,
        milliseconds=(_milliseconds(net, image, device), _milliseconds(small, image, device)),
        batch=_BATCH,
        device=str(device),
        difference=report.difference,
        difference_real=difference,
        declined=report.declined,
    )
    return small, report.masks, report.recipe, facts


@torch.no_grad()
def _difference(net: nn.Module, small: nn.Module, images: Tensor) -> float:
    before, after = net(images), small(images)
    return float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))


@torch.no_grad()
def _milliseconds(net: nn.Module, image: tuple[int, int, int], device: torch.device) -> float:
    """The median of ten forward passes, after three that do not count."""
    home = next(net.parameters()).device
    net.to(device)
    images = torch.rand(_BATCH, *image, device=device)
    times = []
    for _ in range(13):
        started = perf_counter()
        net(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (perf_counter() - started))
    net.to(home)
    return statistics.median(times[3:])
