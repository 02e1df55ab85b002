"""How is a box cut from an image, mirrored and scaled, without aliasing, for a whole batch at once?

A box is scaled by two small matrices an image (rows, columns) whose entries are those of the antialiased bilinear
filter in torchvision's and Pillow's `resize`: a triangle as wide as the step between output pixels, at least two
input pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def _weights(first: Tensor, length: Tensor, size: int, out: int, mirror: Tensor | None) -> Tensor:
    """(B, out, size): output pixel i as a mean of the input pixels first, ..., first + length - 1."""
    scale_B11 = (length.float() / out)[:, None, None]
    place_O = torch.arange(out, device=first.device)
    if mirror is None:
        i_BO1 = place_O[None, :, None].float()
    else:
        i_BO1 = torch.where(mirror[:, None], place_O.flip(0)[None], place_O[None])[:, :, None].float()
    j_B1S = (torch.arange(size, device=first.device)[None] - first[:, None])[:, None, :]
    distance = (j_B1S.float() + 0.5 - scale_B11 * (i_BO1 + 0.5)).abs()
    weight = (1 - distance / scale_B11.clamp(min=1)).clamp_(min=0)
    weight = weight * ((j_B1S >= 0) & (j_B1S < length[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)


def crop_resize(images: Tensor, boxes: Tensor, out: int) -> Tensor:
    """Cut, scale, mirror.

    Args:
        images: uint8 (B, 3, H, W).
        boxes: int (B, 5): top, left, height, width, flip; each box lies inside the image.
        out: side of the result in pixels.

    Returns:
        uint8 (B, 3, out, out), rounded as torchvision does for uint8.
    """
    batch, _, height, width = images.shape
    top, left, tall, wide, flip = boxes.unbind(1)
    with torch.autocast(images.device.type, enabled=False):
        rows_BOH = _weights(top, tall, height, out, None)
        columns_BOW = _weights(left, wide, width, out, flip != 0)
        images_BHCW = images.permute(0, 2, 1, 3).float().reshape(batch, height, 3 * width)
        tall_B_OC_W = torch.bmm(rows_BOH, images_BHCW).reshape(batch, out * 3, width)
        result_BOCP = torch.bmm(tall_B_OC_W, columns_BOW.transpose(1, 2)).reshape(batch, out, 3, out)
    return result_BOCP.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 1, 3)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """uint8 (B, 3, H, W) to uint8 (B, 3, height, width), antialiased bilinear; unchanged where nothing changes."""
    if images.shape[2:] == (height, width):
        return images
    with torch.autocast(images.device.type, enabled=False):
        scaled = interpolate(images.float(), size=(height, width), mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def scale(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, H, W) to uint8 (3, height, width) on the CPU, by torch's vectorised integer kernel."""
    if image.shape[1:] == (height, width):
        return image
    return interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)[0]


def scale_short(image: Tensor, side: int) -> Tensor:
    """uint8 (3, H, W) scaled until its shorter side is `side`; the other is rounded down, as torchvision does."""
    height, width = image.shape[1:]
    if height <= width:
        return scale(image, side, max(side, int(side * width / height)))
    return scale(image, max(side, int(side * height / width)), side)


def centre_crop(images: Tensor, side: int) -> Tensor:
    """(..., H, W) to (..., side, side), placed as torchvision's CenterCrop does."""
    top, left = (round((length - side) / 2.0) for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]
