"""What do the attacked images look like? A sheet for each eps: clean, perturbation, adversarial."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from starfire_cli.attacks import Attack, Size
from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._gradient import frozen
from starfire_cli.data import Split
from starfire_cli.formats.png import write_png

_SHOWN = 8
_LEAST = 96  # pixels a side on a sheet; smaller images are enlarged by a whole number, each pixel to a square
_GAP = 4


def save_sheets(
    folder: Path,
    model: nn.Module,
    split: Split,
    attack: Attack,
    sizes: tuple[Size, ...],
    seed: int,
    classes: tuple[str, ...],
) -> tuple[list[Path], list[str]]:
    """Write `eps-0.05.png` and so on into `folder`; returns the files, and what the 8-bit images do to the network.

    Each sheet has a column an image and three rows: clean, perturbation (grey is none, the strongest change is black or
    white), adversarial. Pixels are rounded to the nearest of 256 levels, and it is these rounded images that are
    classified again.

    Raises:
        StarfireError: the disk refuses.
    """
    images, labels = (part[:_SHOWN] for part in next(iter(split.batches(0))))
    draws = AttackDraws(seed=seed, index_N=torch.arange(len(images), device=images.device))
    wanted = [size for size in sizes if size.eps]
    saved, notes = [], []
    with frozen(model):
        made = attack.sweep(model, images, labels, eps=[size.eps for size in wanted], draws=draws)
        for size, found in zip(wanted, made, strict=True):
            rounded = round_to_bytes(found.images_NCHW)
            exact_guess, guess = _guess(model, found.images_NCHW), _guess(model, rounded.float() / 255)
            change = found.images_NCHW - images
            shown = change / (2 * change.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)) + 0.5
            path = folder / f"eps-{size.label.replace('/', '-')}.png"
            write_png(path, sheet([round_to_bytes(images), round_to_bytes(shown), rounded]).cpu().numpy())
            saved.append(path)
            names = ", ".join(
                f"{classes[right]} as {classes[seen]}" if right != seen else classes[right]
                for right, seen in zip(labels.tolist(), guess.tolist(), strict=True)
            )
            same = (
                "the same"
                if torch.equal(exact_guess, guess)
                else f"{int((exact_guess != labels).sum())} before rounding"
            )
            notes.append(
                f"{path.name}: of {len(labels)} images {int((guess != labels).sum())} are seen wrongly after rounding "
                f"to 8 bits ({same}): {names}"
            )
    return saved, notes


def round_to_bytes(images_NCHW: Tensor) -> Tensor:
    """Pixels of [0, 1] as uint8, to the nearest level (a cast alone would cut off, and weaken the perturbation)."""
    return (images_NCHW * 255).round().clamp(0, 255).to(torch.uint8)


def sheet(rows: list[Tensor]) -> Tensor:
    """Rows of images, each (N, 3, H, W) uint8, as one picture, (height, width, 3), white between them."""
    count, _, height, width = rows[0].shape
    scale = math.ceil(_LEAST / height)
    high, wide = height * scale, width * scale
    picture = torch.full(
        (len(rows) * (high + _GAP) + _GAP, count * (wide + _GAP) + _GAP, 3),
        255,
        dtype=torch.uint8,
        device=rows[0].device,
    )
    for r, row in enumerate(rows):
        large = row.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1)
        for c, image in enumerate(large):
            top, left = _GAP + r * (high + _GAP), _GAP + c * (wide + _GAP)
            picture[top : top + high, left : left + wide] = image
    return picture


@torch.inference_mode()
def _guess(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits.float().argmax(1).clone()
