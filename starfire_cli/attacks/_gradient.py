"""Gradients of a loss with respect to the pixels, with the network in eval mode.

Eval mode, no gradients of parameters (half the work and memory), the sum of the losses (a mean divides the gradients by
the batch size, which half precision rounds to zero), logits in float32 (docs/attack.md gives the reasons).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode without parameter gradients; afterwards every module's and parameter's own flag is back."""
    training = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def input_gradient(model: nn.Module, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy, (N, C, H, W)."""
    with torch.enable_grad():
        # An inference tensor (from a loader under inference_mode) cannot take part in autograd.
        pixels = images_NCHW.clone() if images_NCHW.is_inference() else images_NCHW.detach()
        pixels.requires_grad_(True)
        loss = cross_entropy(model(pixels).float(), labels_N, reduction="sum")
        (gradient_NCHW,) = torch.autograd.grad(loss, pixels)
    return gradient_NCHW


def blind(gradient_NCHW: Tensor) -> Tensor:
    """Bool, (N,): images whose gradient is zero in every pixel, or not finite in some, and so gives no direction."""
    flat = gradient_NCHW.flatten(1)
    return (flat == 0).all(1) | ~flat.isfinite().all(1)
