"""Peers of the input benchmark, which load the same images: torchvision in two ways, and timm where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms as v1
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

Epoch = Callable[[], int]  # delivers an epoch, returns how many images
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # an epoch of float32 images on the device, and labels
CPU = torch.device("cpu")


def peers(folder: Path, *, crop: str, size: int, batch: int, workers: int) -> dict[str, Epoch]:
    """Each peer's epoch over the class folders; `crop` is `crop-flip`, `rrc-flip` or `eval`."""
    found = batches(folder, crop=crop, size=size, batch=batch, workers=workers)
    return {name: lambda one=one: sum(len(images) for images, _ in one()) for name, one in found.items()}


def batches(
    folder: Path, *, crop: str, size: int, batch: int, workers: int, device: torch.device = CPU
) -> dict[str, Batches]:
    """Each peer's batches.

    All end with float32 batches on the device: torchvision's first way makes floats in the workers, the others send
    uint8. On the way to a GPU they are pinned and copied without waiting, as the reference scripts do.
    """
    v1_s, v2_s = [*_v1(crop, size), v1.ToTensor()], [v2.PILToTensor(), *_v2(crop, size)]
    ways = {
        "torchvision v1, PIL to float": _loader(folder, v1_s, batch, workers, crop, device),
        "torchvision v2, uint8": _loader(folder, v2_s, batch, workers, crop, device),
    }
    if find_spec("timm") is not None and crop != "crop-flip":  # timm has no crop with padding without resizing
        ways["timm create_loader"] = _timm(folder, size, batch, workers, crop, device)
    return ways


def _v1(crop: str, size: int) -> list[Any]:
    return {
        "crop-flip": [v1.RandomCrop(size, padding=4), v1.RandomHorizontalFlip()],
        "rrc-flip": [v1.RandomResizedCrop(size), v1.RandomHorizontalFlip()],
        "eval": [v1.Resize(size * 256 // 224), v1.CenterCrop(size)],
    }[crop]


def _v2(crop: str, size: int) -> list[Any]:
    return {
        "crop-flip": [v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()],
        "rrc-flip": [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()],
        "eval": [v2.Resize(size * 256 // 224, antialias=True), v2.CenterCrop(size)],
    }[crop]


def _loader(folder: Path, transforms: list[Any], batch: int, workers: int, crop: str, device: torch.device) -> Batches:
    data = ImageFolder(str(folder), v1.Compose(transforms))
    pinned = device.type == "cuda"
    loader = DataLoader(data, batch_size=batch, shuffle=crop != "eval", num_workers=workers, pin_memory=pinned)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            images, labels = (x.to(device, non_blocking=True) for x in (images, labels))
            yield images if images.is_floating_point() else images.float().div_(255), labels

    return epoch


def _timm(folder: Path, size: int, batch: int, workers: int, crop: str, device: torch.device) -> Batches:
    from timm.data import create_dataset, create_loader

    data = create_dataset("", root=str(folder), split="")
    loader = create_loader(
        data,
        input_size=(3, size, size),
        batch_size=batch,
        is_training=crop != "eval",
        no_aug=False,
        color_jitter=None,
        auto_augment=None,
        interpolation="bilinear",
        crop_pct=224 / 256,
        num_workers=workers,
        use_prefetcher=True,
        persistent_workers=False,
        pin_memory=device.type == "cuda",
        device=device,
    )
    return lambda: iter(loader)


def webdataset(shards: Path, *, size: int, batch: int, workers: int) -> dict[str, Epoch]:
    """The webdataset library's own loader over the same shards, where it is installed: PIL, torchvision v2, uint8."""
    if find_spec("webdataset") is None:
        return {}
    import webdataset as wds

    transform = v2.Compose([v2.PILToTensor(), *_v2("rrc-flip", size)])
    names = sorted(str(p) for p in shards.glob("train-*.tar"))
    data = wds.WebDataset(names, shardshuffle=100, nodesplitter=None).shuffle(2000).decode("pil").to_tuple("jpg", "cls")
    loader = wds.WebLoader(data.map_tuple(transform, int).batched(batch), batch_size=None, num_workers=workers)
    return {"webdataset": lambda: sum(len(images.float().div_(255)) for images, _ in loader)}
