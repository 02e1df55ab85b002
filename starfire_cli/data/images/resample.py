"""Crops, mirrors and resizes a whole batch of images with antialiasing.

The filter is that of torchvision's and Pillow's bilinear `resize` for 8 bits: a triangle as wide as two steps between
output pixels, but at least two input pixels, with 16-bit integer weights; columns first, then rows, each rounded. On
a CPU torch's own kernel does it; elsewhere the same integers are multiplied as small matrices, to the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

LONGEST = 256  # times the shorter side: what lies beyond, no centre crop shows


def _weights(first: Tensor, length: Tensor, size: int, out: int, mirror: Tensor | None) -> tuple[Tensor, Tensor]:
    """Integer weights (B, out, size) and their sums (B, 1, 1): output pixel i is a mean of the input pixels first, ...,
    first + length - 1.
    """
    exact = torch.float32 if first.device.type == "mps" else torch.float64  # mps has no float64
    place = torch.arange(out, device=first.device)
    places = place[None] if mirror is None else torch.where(mirror[:, None], place.flip(0), place)
    scale_B11 = (length.to(exact) / out)[:, None, None]
    j_B1S = (torch.arange(size, device=first.device)[None] - first[:, None])[:, None, :]
    distance = (j_B1S + 0.5 - scale_B11 * (places[:, :, None] + 0.5)).abs()
    weight = (1 - distance / scale_B11.clamp(min=1)).clamp_(min=0)
    weight = weight * ((j_B1S >= 0) & (j_B1S < length[:, None, None]))
    weight = weight / weight.sum(dim=2, keepdim=True)
    most_B11 = weight.amax(dim=(1, 2), keepdim=True)
    # As many bits as keep the largest weight below 2^15: torch's rule, and Pillow's.
    unit_B11 = torch.exp2((torch.ceil(torch.log2(32767.5 / most_B11)) - 1).clamp(max=22))
    return torch.floor(weight * unit_B11 + 0.5).float(), unit_B11.float()


def _mean(values: Tensor, weights: Tensor, unit: Tensor) -> Tensor:
    """Values 0..255 (B, N, size) to their rounded weighted means (B, N, out)."""
    # Eight bits at a time: then TF32 and even bfloat16 products are exact, whatever precision the user allows.
    high = torch.floor(weights / 256)
    sums = 256 * torch.bmm(values, high.transpose(1, 2)) + torch.bmm(values, (weights - 256 * high).transpose(1, 2))
    return torch.floor((sums + unit / 2) / unit).clamp_(0, 255)


def crop_resize(images: Tensor, boxes: Tensor, out: int) -> Tensor:
    """Crops, resizes and mirrors.

    Args:
        images: uint8 (B, 3, H, W).
        boxes: int (B, 5): top, left, height, width, flip; each box lies inside the image.
        out: side of the result in pixels.

    Returns:
        uint8 (B, 3, out, out), the same on every device.
    """
    return _one_by_one(images, boxes, out) if images.device.type == "cpu" else by_matrices(images, boxes, out)


def _one_by_one(images: Tensor, boxes: Tensor, out: int) -> Tensor:
    """As `crop_resize`, image by image: on a CPU torch's integer kernel is several times as fast as matrix products."""
    result = images.new_empty((len(images), 3, out, out))
    for image, target, (top, left, tall, wide, flip) in zip(images, result, boxes.tolist(), strict=True):
        box = scale(image[:, top : top + tall, left : left + wide], out, out)
        target.copy_(box.flip(2) if flip else box)
    return result


def by_matrices(images: Tensor, boxes: Tensor, out: int) -> Tensor:
    """As `crop_resize`, in a few operations for the whole batch."""
    batch, _, height, width = images.shape
    top, left, tall, wide, flip = boxes.unbind(1)
    with torch.autocast(images.device.type, enabled=False):
        pixels_B_CH_W = images.float().reshape(batch, 3 * height, width)
        narrow_B_CH_O = _mean(pixels_B_CH_W, *_weights(left, wide, width, out, flip != 0))
        narrow_B_CO_H = narrow_B_CH_O.reshape(batch, 3, height, out).transpose(2, 3).reshape(batch, 3 * out, height)
        result_B_CO_P = _mean(narrow_B_CO_H, *_weights(top, tall, height, out, None))
    return result_B_CO_P.to(torch.uint8).reshape(batch, 3, out, out).transpose(2, 3)


def resize(images: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, H, W) scaled to (B, 3, side, side); unchanged where nothing changes."""
    height, width = images.shape[2:]
    if (height, width) == (side, side):
        return images
    if images.device.type == "cpu":
        return interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    whole = torch.tensor([[0, 0, height, width, 0]], device=images.device)
    return by_matrices(images, whole.expand(len(images), -1), side)


def scale(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, H, W) to uint8 (3, height, width) on the CPU, by torch's vectorised integer kernel."""
    if image.shape[1:] == (height, width):
        return image
    images = image[None]
    if image.stride(0) == 1:  # a box of a decoded image: the kernel is faster where its rows lie together
        images = images.contiguous(memory_format=torch.channels_last)
    return interpolate(images, size=(height, width), mode="bilinear", antialias=True)[0]


def scale_short(image: Tensor, side: int) -> Tensor:
    """uint8 (3, H, W) scaled until its shorter side is `side`; the other is rounded down, as torchvision does."""
    height, width = image.shape[1:]
    if max(height, width) > LONGEST * min(height, width):  # a line of pixels would become gigabytes
        image = centre_crop_to(image, LONGEST * min(height, width))
        height, width = image.shape[1:]
    if height <= width:
        return scale(image, side, max(side, int(side * width / height)))
    return scale(image, max(side, int(side * height / width)), side)


def centre_crop_to(image: Tensor, longest: int) -> Tensor:
    """(3, H, W) without what lies further from the centre than `longest` / 2."""
    top, left = (max(0, (length - longest) // 2) for length in image.shape[1:])
    return image[:, top : top + longest, left : left + longest]


def centre_crop(images: Tensor, side: int) -> Tensor:
    """(..., H, W) to (..., side, side), placed as torchvision's CenterCrop does."""
    top, left = (round((length - side) / 2.0) for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]
