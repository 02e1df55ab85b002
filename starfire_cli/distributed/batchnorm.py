"""BatchNorm statistics across ranks: the mean of all ranks' wherever the network is used or saved.

Each rank's running mean and variance come from its own share of every batch. They are brought together at the end of
an epoch; a checkpoint within one has the mean, too, while training goes on with each rank's own.
"""

from __future__ import annotations

from torch import Tensor, nn

from starfire_cli.distributed.ranks import Ranks


def agreed(module: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """The buffers of all ranks, averaged, by name; whole numbers (counts of batches) are this rank's."""
    names = [name for name, buffer in module.named_buffers() if buffer.is_floating_point()]
    found = dict(module.named_buffers())
    return dict(zip(names, ranks.average([found[name] for name in names]), strict=True))


def agree(module: nn.Module, ranks: Ranks) -> None:
    """Write the averages into the module."""
    if ranks.count > 1:
        write(module, agreed(module, ranks))


def own(module: nn.Module) -> dict[str, Tensor]:
    """This rank's buffers, by name, on the CPU."""
    return {name: buffer.detach().cpu().clone() for name, buffer in module.named_buffers()}


def write(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Put `values` in the place of the buffers of these names. Raises KeyError for a name there is not."""
    found = dict(module.named_buffers())
    for name, value in values.items():
        found[name].copy_(value)
