"""Compares an exported library with the network it was made from, on this machine."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The logits of a network for some random images.

    Args:
        pixels: (N, C, H, W).
        logits: (N, outputs), which are finite.
    """

    pixels: Tensor
    logits: Tensor

    def apart(self, logits: Tensor) -> float:
        """The largest difference of other logits from these, as a share of the largest; infinite where some are NaN."""
        found = float((logits - self.logits).abs().max() / self.logits.abs().max().clamp_min(1e-30))
        return math.inf if math.isnan(found) else found


@torch.inference_mode()
def reference(model: nn.Module, image: tuple[int, int, int]) -> Reference:
    """The logits of a network for images (C, H, W). Raises StarfireError where they are not finite."""
    pixels = torch.rand(IMAGES, *image, generator=torch.Generator().manual_seed(0))
    logits = model(pixels)
    bad = int(logits.isfinite().logical_not().sum())
    if bad:
        raise StarfireError(
            f"nothing was exported: {bad} of the network's own {logits.numel()} logits for {IMAGES} random images "
            "are NaN or infinite; its weights are finite, but too large"
        )
    return Reference(pixels=pixels, logits=logits)


def difference(library: bytes, name: str, expected: Reference) -> float | None:
    """The largest difference of its logits from the network's, as a share of the largest.

    None where this processor cannot run it. Raises StarfireError where the library does not work at all.
    """
    pixels, logits = expected.pixels, torch.full_like(expected.logits, float("nan"))
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
            source, target = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (pixels, logits))
            code = loaded[f"{name}_run"](network, source, ctypes.c_int64(len(pixels)), target)
            loaded[f"{name}_free"](network)
        if code:
            raise StarfireError(f"lib{name}.so was not written: it gives error {code}")
    return expected.apart(logits)


def difference_in_node(module: bytes, script: str, name: str, expected: Reference) -> float | None:
    """As `difference`, of a module of WebAssembly; None where Node is not installed."""
    if shutil.which("node") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{name}.wasm").write_bytes(module)
        Path(folder, f"{name}.js").write_text(script, encoding="utf-8")
        Path(folder, "pixels").write_bytes(expected.pixels.numpy().tobytes())
        Path(folder, "check.js").write_text(_IN_NODE.replace("NAME", name), encoding="utf-8")
        command = ("node", "check.js")
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=True)
            logits = torch.tensor([float(number) for number in done.stdout.split()]).reshape(expected.logits.shape)
        except (OSError, subprocess.SubprocessError, ValueError, RuntimeError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise StarfireError(f"nothing was written: the module does not run in Node ({said[-1][:200]})") from None
    return expected.apart(logits)
