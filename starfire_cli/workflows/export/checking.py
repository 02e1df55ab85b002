"""Compares an exported library with the network it was made from, on this machine."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

import torch
from torch import nn

from starfire_cli.errors import StarfireError

PROCESSOR = -3
IMAGES = 2


@torch.inference_mode()
def difference(library: bytes, name: str, model: nn.Module, image: tuple[int, int, int], outputs: int) -> float | None:
    """The largest difference of its logits from the network's, as a share of the largest, on random images.

    None where this processor cannot run it. Raises StarfireError where the library does not work at all.
    """
    pixels = torch.rand(IMAGES, *image, generator=torch.Generator().manual_seed(0))
    logits = torch.full((IMAGES, outputs), float("nan"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"lib{name}.so")
        path.write_bytes(library)
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            raise StarfireError(f"lib{name}.so was not written: it cannot be loaded ({error})") from None
        network, zero = ctypes.c_void_p(), ctypes.c_int64(0)
        code = loaded[f"{name}_create"](ctypes.byref(network), 1, None, zero)
        if code == PROCESSOR:
            return None
        if not code:
            address = ctypes.c_void_p(pixels.data_ptr())
            code = loaded[f"{name}_run"](network, address, ctypes.c_int64(IMAGES), ctypes.c_void_p(logits.data_ptr()))
            loaded[f"{name}_free"](network)
        if code:
            raise StarfireError(f"lib{name}.so was not written: it gives error {code}")
    expected = model(pixels)
    return float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
