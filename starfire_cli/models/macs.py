"""How many multiply-accumulates each layer costs on one image, and how many of them a set of masks leaves."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


def count_macs(model: nn.Module, image_size: int, *, channels: int = 3) -> dict[str, int]:
    """Multiply-accumulates of every Conv2d and Linear on one `image_size` x `image_size` image, by module name.

    A layer that is called twice counts twice. How the model is run: see `probe`.
    """
    macs: dict[str, int] = {}
    handles = []

    def hook(name: str) -> object:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            each = module.weight[0].numel()  # type: ignore[index]
            macs[name] = macs.get(name, 0) + output.numel() * each

        return count

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_hook(hook(name)))  # type: ignore[arg-type]
    try:
        probe(model, image_size, channels=channels, on_retry=macs.clear)
    finally:
        for handle in handles:
            handle.remove()
    return macs


def effective_macs(macs: Mapping[str, int], masks: Mapping[str, Tensor]) -> dict[str, int]:
    """What is left of `macs` when dead weights cost nothing: each weight is used as often as any other of its layer.

    Args:
        macs: by module name, from `count_macs`.
        masks: by state-dict key (`NAME.weight`), True = alive; a layer without a mask is alive.
    """
    left = {}
    for name, dense in macs.items():
        mask = masks.get(f"{name}.weight" if name else "weight")
        left[name] = dense if mask is None else dense * int(mask.sum()) // mask.numel()
    return left


@torch.no_grad()
def probe(model: nn.Module, image_size: int, *, channels: int = 3, on_retry: object = None) -> object:
    """What the model returns in eval mode for one black image: on the meta device, or for real where that fails.

    Also for real where torch's compiler is not loaded yet: the meta device would load it, which takes seconds.
    Every module's own training flag is as before. Raises whatever the model raises.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    # By one name for each module that has it: a module under two names would get meta tensors back at the end.
    tensors = {
        f"{place}.{name}".lstrip("."): tensor
        for place, module in model.named_modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    shape = (1, channels, image_size, image_size)
    try:
        if "torch._dynamo" in sys.modules or any(tensor.is_meta for tensor in tensors.values()):
            try:
                meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
                return functional_call(model, meta, (torch.zeros(shape, device="meta"),), tie_weights=False)
            except Exception:  # noqa: BLE001 - a user's model may raise anything on meta tensors
                if callable(on_retry):
                    on_retry()
        like = next(iter(tensors.values()), torch.zeros(()))
        return model(torch.zeros(shape, device=like.device))
    finally:
        for module, flag in training.items():
            module.training = flag
