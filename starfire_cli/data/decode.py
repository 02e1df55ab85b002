"""How does an image file become pixels?

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

Decoder = Callable[[bytes], Tensor]


class Corrupt(Exception):
    """A file that cannot be decoded; the text is the reason."""


def decode(data: bytes) -> Tensor:
    """uint8 (3, H, W) of any image file's bytes, upright by its orientation tag, without alpha channel. Raises Corrupt.

    Decoders warn about what does not matter here: call it inside `quiet()`.
    """
    # libjpeg fills up a JPEG that was cut off and only warns; with its end in place it may go to a fast decoder.
    if data[:2] == b"\xff\xd8" and data.rstrip(b"\0")[-2:] == b"\xff\xd9":
        _, decoder = jpeg_decoder()
        if decoder is not None:
            try:
                return decoder(data)
            except Exception:  # noqa: BLE001 - whatever it was, Pillow says it better or can do it
                pass
    return _with_pillow(data)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings about metadata or size while images are decoded: what matters is whether pixels come out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def prepare(*, much: bool) -> None:
    """Choose the decoder before workers are forked; where there is much to decode, importing torchvision pays."""
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
        with Image.open(BytesIO(data)) as image:
            image.load()
            if "exif" in image.info or image.format == "TIFF":
                with contextlib.suppress(Exception):  # damaged tags do not make an image corrupt
                    ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16"):
                grey = torch.from_numpy((np.asarray(image) >> 8).astype(np.uint8))
                return grey.expand(3, -1, -1)
            if image.mode in ("I", "F"):
                raise Corrupt(f"{image.mode!r}, 32 bits a pixel, is not supported; save it with 8 bits")
            transparent = image.mode == "P" and "transparency" in image.info
            rgb = (image.convert("RGBA") if transparent else image).convert("RGB")
            return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
    except Corrupt:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise anything on damaged files
        reason = str(error).split(" <_io")[0].removesuffix(" file")
        raise Corrupt("cannot identify image file" if "cannot identify" in reason else reason) from None


def size_of(file: str | BytesIO) -> tuple[int, int]:
    """Height and width, from the header alone, of the file at a path or of its bytes. Raises Corrupt."""
    from PIL import Image

    try:
        with quiet(), Image.open(file) as image:
            return image.height, image.width
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise anything on damaged files
        raise Corrupt(str(error)) from None
