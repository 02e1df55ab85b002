"""Chooses the batch size of an attack from the free memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from starfire_cli.attacks._gradient import frozen, input_gradient

# Beyond these more images at a time gain nothing, as measured: a CPU works from its caches, a GPU is full.
_MOST = {"cpu": 64, "cuda": 1024}
_PIXELS = 2**27  # of one batch from the loader, 512 MB as float32
_SHARE = 0.5


def largest_useful_batch(device: torch.device, image_size: int) -> int:
    """The largest batch size of use on this device."""
    return max(1, min(_MOST.get(device.type, 256), _PIXELS // (3 * image_size**2)))


def images_that_fit(model: nn.Module, device: torch.device, image_size: int, most: int) -> int:
    """The number of images that one gradient's memory allows, extrapolated from two images."""
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes if tensor.shape[:1] == (2,) else 0
        return tensor

    pixels = torch.full((2, 3, image_size, image_size), 0.5, device=device)
    with frozen(model), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        input_gradient(model, pixels, torch.zeros(2, dtype=torch.int64, device=device))
    # Twice: gradients of the activations, and what a library allocates to compute them.
    each = 2 * (saved / 2 + 8 * pixels[0].nbytes)
    return max(1, min(most, int(free_memory(device) * _SHARE / each)))


def free_memory(device: torch.device) -> int:
    """Free bytes on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [2**33]
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = [int(line.split()[1]) * 1024]
        group = Path("/sys/fs/cgroup")  # a container's limit, which meminfo does not know
        limit = group.joinpath("memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            free.append(int(limit) - int(group.joinpath("memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass  # not Linux, or no such control group: the guess stands
    return max(0, min(free))
