"""Decodes image files into pixels.

JPEGs go to torchcodec where it is installed, else to torchvision where that is at hand, else to Pillow, which also
decodes every other format and has the last word on what is damaged.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

from starfire_cli.text import reason

Decoder = Callable[[bytes], Tensor]


MOST = 178_956_970  # pixels; where Pillow, too, takes an image for an attack
LIKELY = 50_000_000  # pixels that any file may have: 200 MB while they are decoded
DENSEST = 100  # pixels a byte beyond that


class Corrupt(Exception):
    """A file that cannot be decoded; the text is the reason."""


def decode(data: bytes) -> Tensor:
    """uint8 (3, H, W) of any image file's bytes, upright by its orientation tag, without alpha channel. Raises Corrupt.

    Decoders warn about what does not matter here: call it inside `quiet()`.
    """
    # libjpeg fills up a JPEG that was cut off and only warns; with its end in place it may go to a fast decoder.
    if data[:2] == b"\xff\xd8" and data.rstrip(b"\0")[-2:] == b"\xff\xd9":
        _, decoder = jpeg_decoder()
        size = _jpeg_size(data)
        if decoder is not None and size is not None:
            _check_size(*size, len(data))
            try:
                return decoder(data)
            except Exception:  # noqa: BLE001 - whatever it was, Pillow says it better or can do it
                pass
    return _with_pillow(data)


@contextlib.contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppresses warnings about metadata and size while images are decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def select_decoder(*, much: bool) -> None:
    """Selects the JPEG decoder before workers are forked; for `much` data, importing torchvision pays off."""
    jpeg_decoder.cache_clear()
    if much and jpeg_decoder()[1] is None:
        with contextlib.suppress(ImportError):
            import torchvision  # noqa: F401
        jpeg_decoder.cache_clear()
    jpeg_decoder()


@cache
def jpeg_decoder() -> tuple[str, Decoder | None]:
    """Name and function of the fastest JPEG decoder at hand; the function is None for Pillow.

    torchvision's is deprecated and takes seconds to import, so it is used only where torchvision is loaded already.
    """
    try:
        decode_jpeg = import_module("torchcodec.decoders").decode_jpeg
        return "torchcodec", lambda data: decode_jpeg(data, mode="RGB")
    except (ImportError, OSError, RuntimeError):  # not installed, or its libraries do not load
        pass
    if "torchvision" in sys.modules:
        try:
            from torchvision.io import decode_jpeg as vision_jpeg
        except ImportError:
            return "Pillow", None

        def by_torchvision(data: bytes) -> Tensor:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            image: Tensor = vision_jpeg(encoded, mode="RGB", apply_exif_orientation=True)
            return image

        return "torchvision", by_torchvision
    return "Pillow", None


def _with_pillow(data: bytes) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(BytesIO(data), formats=_formats()) as image:
            _check_size(image.height, image.width, len(data))
            image.load()
            if "exif" in image.info or image.format == "TIFF":
                with contextlib.suppress(Exception):  # damaged tags do not make an image corrupt
                    ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16"):
                grey = torch.from_numpy((np.asarray(image) >> 8).astype(np.uint8))
                return grey.expand(3, -1, -1)
            if image.mode == "I" and image.format == "PPM":  # 16 bits, which Pillow keeps in 32
                grey = torch.from_numpy((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
                return grey.expand(3, -1, -1)
            if image.mode in ("I", "F"):
                raise Corrupt(f"{image.mode!r}, 32 bits a pixel, is not supported; save it with 8 bits")
            transparent = image.mode == "P" and "transparency" in image.info
            rgb = (image.convert("RGBA") if transparent else image).convert("RGB")
            return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
    except Corrupt:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise anything on damaged files
        raise Corrupt(_error_text(error)) from None


def _error_text(error: Exception) -> str:
    said = reason(error).split(" <_io")[0].removesuffix(" file")
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is"
    return "cannot identify image file" if "cannot identify" in said else said


@cache
def _formats() -> list[str]:
    """The formats that Pillow may open: all but PostScript, for which it starts another program on the file."""
    from PIL import Image

    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def _check_size(height: int, width: int, length: int) -> None:
    """Raises Corrupt where a file of `length` bytes claims more pixels than it can hold: before they are allocated."""
    if height * width > min(MOST, max(LIKELY, DENSEST * length)):
        raise Corrupt(f"its header claims {width:,} x {height:,} pixels, in {length:,} bytes")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width from a JPEG's header, or None where it is not as usual; Pillow then looks at it."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        if marker == 0x01 or 0xD0 <= marker <= 0xDA:
            return None
        if marker == 0xFF:  # there may be any number of these
            at += 1
            continue
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return None


def size_of(file: str | BytesIO) -> tuple[int, int]:
    """Height and width, from the header alone, of the file at a path or of its bytes. Raises Corrupt."""
    from PIL import Image

    try:
        with suppress_warnings(), Image.open(file, formats=_formats()) as image:
            return image.height, image.width
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise anything on damaged files
        raise Corrupt(_error_text(error)) from None
