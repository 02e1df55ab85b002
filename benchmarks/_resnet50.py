"""Pruned ResNet50s for the benchmarks, with weights as initialised and as training leaves them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era

State = dict[str, Tensor]


def resnet50(weights: str, method: str, target: float) -> tuple[State, State]:
    """A pruned ResNet50: fresh weights, or such as training leaves (see `trained_like`)."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    if weights == "trained-like":
        trained_like(model)
    layers, _ = layers_of_model(model)
    pruner = Pruner(
        model,
        layers,
        conv=CONV_METHODS.build(method),
        linear=LINEAR_METHODS.build("fine"),
        target=target,
        era=Era(first_step=0, last_step=1),
    )
    pruner.refresh(1.0)
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    return state, {key: mask.clone() for key, mask in pruner.masks.items()}


def training_step(device: torch.device, batch: int, size: int) -> tuple[torch.nn.Module, Callable[[], None]]:
    """A ResNet50 in channels_last memory, and a step of its training: forward, backward, SGD with momentum."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().to(device, memory_format=torch.channels_last)
    images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return model, step


@torch.no_grad()
def trained_like(model: torch.nn.Module) -> None:
    """Heavier tails (Student's t, 5 degrees) and scales that differ by output channel; norms that are not constant."""
    for name, tensor in model.state_dict().items():
        if tensor.ndim >= 2:
            scale = tensor.std() * torch.exp(0.5 * torch.randn(tensor.shape[0], *[1] * (tensor.ndim - 1)))
            tensor.copy_(torch.distributions.StudentT(5.0).sample(tensor.shape) * scale * 0.77)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape) * 0.2 + (0 if "bias" in name or "mean" in name else 1))
            if "var" in name:
                tensor.abs_()
