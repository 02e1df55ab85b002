"""Compares an exported library with the network it was made from, on this machine."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError

PROCESSOR = -3
IMAGES = 2
_SECONDS = 120
_IN_NODE = """
const pixels = require("fs").readFileSync("pixels");
require("./NAME.js").load().then((network) => {
  const logits = network.run(new Float32Array(pixels.buffer, pixels.byteOffset, pixels.length / 4));
  console.log(Array.from(logits).join(" "));
});
"""


@torch.inference_mode()
def difference(library: bytes, name: str, model: nn.Module, image: tuple[int, int, int], outputs: int) -> float | None:
    """The largest difference of its logits from the network's, as a share of the largest, on random images.

    None where this processor cannot run it. Raises StarfireError where the library does not work at all.
    """
    pixels = _pixels(image)
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
    return _apart(logits, model(pixels))


@torch.inference_mode()
def difference_in_node(
    module: bytes, script: str, name: str, model: nn.Module, image: tuple[int, int, int]
) -> float | None:
    """As `difference`, of a module of WebAssembly; None where Node is not installed."""
    if shutil.which("node") is None:
        return None
    pixels = _pixels(image)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{name}.wasm").write_bytes(module)
        Path(folder, f"{name}.js").write_text(script, encoding="utf-8")
        Path(folder, "pixels").write_bytes(pixels.numpy().tobytes())
        Path(folder, "check.js").write_text(_IN_NODE.replace("NAME", name), encoding="utf-8")
        command = ("node", "check.js")
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=True)
            logits = torch.tensor([float(number) for number in done.stdout.split()])
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise StarfireError(f"nothing was written: the module does not run in Node ({said[-1][:200]})") from None
    return _apart(logits.reshape(IMAGES, -1), model(pixels))


def _pixels(image: tuple[int, int, int]) -> Tensor:
    return torch.rand(IMAGES, *image, generator=torch.Generator().manual_seed(0))


def _apart(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
