"""Refuses, before training begins, steps in which BatchNorm would see a single value of each channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from starfire_cli.errors import BadOption
from starfire_cli.models import probe


def has_batchnorm(net: nn.Module) -> bool:
    """Whether statistics over a batch are taken anywhere; then no part of it has one image (`micro_batches.py`)."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def needs_two(net: nn.Module, image_size: int) -> str | None:
    """The first BatchNorm layer whose input is one value per channel for one image; None if there is none."""
    found: list[str] = []
    handles = []

    def note(name: str) -> object:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs and inputs[0].ndim > 1 and inputs[0].numel() == inputs[0].shape[0] * inputs[0].shape[1]:
                found.append(name)

        return look

    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(note(name)))  # type: ignore[arg-type]
    try:
        probe(net, image_size, on_retry=found.clear)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def check_batches(net: nn.Module, image_size: int, *, batch: int, images: int, ranks: int) -> None:
    """Raises BadOption if some rank would get a single image in some step, and the network cannot learn from one.

    Args:
        net: whose BatchNorm layers are looked at, where the numbers say that they have to be.
        image_size: pixels a side.
        batch: images a step, of all ranks together.
        images: training images; of a last batch of one nothing is seen.
        ranks: how many share a batch.
    """
    if not _has_lone(batch, images, ranks) or not has_batchnorm(net):
        return
    name = needs_two(net, image_size)
    if name is None:
        return
    better = next((b for b in _near(batch, images) if not _has_lone(b, images, ranks)), None)
    where = f" on one of {ranks} processes" if ranks > 1 else ""
    cure = f"--batch-size {better} works" if better else f"{images} training images are too few"
    raise BadOption(
        f"--batch-size {batch} of {images} training images leaves a step with one image{where}; BatchNorm ({name}) "
        f"sees 1 x 1 maps there and needs two; {cure}"
    )


def _has_lone(batch: int, images: int, ranks: int) -> bool:
    last = images % batch
    return any(0 < size < 2 * ranks for size in (min(batch, images), 0 if last == 1 < batch else last))


def _near(batch: int, images: int) -> Iterator[int]:
    """Batch sizes from the nearest on, smaller ones first."""
    for distance in range(1, max(batch, images)):
        yield from (size for size in (batch - distance, batch + distance) if 1 < size <= images)


def without_lone(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same images, (N, C, H, W), in the same order, a batch of one joined with a neighbour as far as it has one."""
    lone: Tensor | None = None
    ready: Tensor | None = None
    for images in batches:
        joined = images if lone is None else torch.cat([lone, images])
        lone = joined if len(joined) == 1 else None
        if lone is None:
            if ready is not None:
                yield ready
            ready = joined
    if lone is not None:
        ready = lone if ready is None else torch.cat([ready, lone])
    if ready is not None:
        yield ready
