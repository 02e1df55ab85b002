"""Gradients of a batch before the first step, for methods that look at one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption


def gradients_of(network: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Fill the network's gradients by one call of `loss`, and return it; buffers and random numbers are put back.

    Raises BadOption where it returns no loss.
    """
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    cuda = sorted({p.device for p in network.parameters() if p.device.type == "cuda"}, key=str)
    network.zero_grad(set_to_none=True)
    training = network.training
    network.train()
    with torch.random.fork_rng(cuda), torch.enable_grad():
        found = loss()
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.requires_grad:
            raise BadOption(f"loss returned {_shown(found)}; the mean loss of a batch, a tensor of one number, works")
        found.backward()  # type: ignore[no-untyped-call]
    network.train(training)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(kept[name])
    return float(found.detach())


def _shown(found: object) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}" + ("" if found.requires_grad else " without a gradient")
    return f"a {type(found).__name__}"
