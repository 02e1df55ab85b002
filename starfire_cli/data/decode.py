"""How does an image file become pixels?

Pillow decodes everything; the array is always height x width x 3, 8 bits.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from starfire_cli.data import resample

Image8 = npt.NDArray[np.uint8]


class Corrupt(Exception):
    """A file that cannot be decoded; the text is the decoder's reason."""


def decode(path: str) -> Image8:
    """uint8 (H, W, 3) of any image file. Raises Corrupt; OSError where the file cannot be read at all."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata and size; what matters is whether pixels come out
            with Image.open(path) as image:
                if image.mode.startswith("I;16"):
                    grey = (np.asarray(image) >> 8).astype(np.uint8)
                    return np.repeat(grey[..., None], 3, axis=2)
                if image.mode in ("I", "F"):
                    raise Corrupt(f"mode {image.mode!r} (32 bits a pixel) is not supported")
                if image.mode == "P" and "transparency" in image.info:
                    image = image.convert("RGBA")  # noqa: PLW2901
                return np.asarray(image.convert("RGB"))
    except (FileNotFoundError, PermissionError):
        raise
    except Corrupt:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise anything on damaged files
        raise Corrupt(f"{type(error).__name__}: {error}") from None


def size_of(path: str) -> tuple[int, int]:
    """Height and width, from the header alone. Raises as `decode`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.height, image.width
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise anything on damaged files
        raise Corrupt(f"{type(error).__name__}: {error}") from None


def square(image: Image8, side: int) -> Image8:
    """uint8 (3, side, side): the image as it is where it has that size, else its centre, scaled with antialias."""
    import torch

    height, width = image.shape[:2]
    planes = torch.from_numpy(np.array(image.transpose(2, 0, 1)))[None]
    if (height, width) != (side, side):
        planes = resample.resize(planes, *resample.short_side(height, width, side))
        top, left = resample.centre(*planes.shape[2:], side, side)
        planes = planes[:, :, top : top + side, left : left + side]
    return planes[0].contiguous().numpy()
