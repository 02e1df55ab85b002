"""Kernels are dead or alive as a whole: a bit a kernel, or the gaps between live ones (paper, section 2.1.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from starfire_cli.formats.packed.encoding import ENCODINGS, Alive
from starfire_cli.formats.packed.information import counts_bits, log2_choose
from starfire_cli.formats.packed.streams import Bits, StreamReader, StreamWriter


@ENCODINGS.register("ck")
@dataclass(frozen=True, kw_only=True)
class CKEncoding:
    """Every kernel is all alive or all dead; kernels of one weight are better called unstructured."""

    def encode(self, mask_KCn: Bits, out: StreamWriter) -> float | None:
        bits = self.bound(mask_KCn)
        if bits is not None:
            out.bits(mask_KCn[:, :, 0].reshape(-1))
        return bits

    def bound(self, mask_KCn: Bits) -> float | None:
        K, _, n = mask_KCn.shape
        alive_KC = mask_KCn[:, :, 0] if n else mask_KCn.any(2)
        if n < 2 or not all(np.array_equal(mask_KCn[:, :, place], alive_KC) for place in range(1, n)):
            return None
        kept_C = alive_KC.sum(0)
        # The method keeps equally many kernels of each input channel; where a mask does not, the counts cost too.
        return log2_choose(K, kept_C) + counts_bits(kept_C)

    def decode(self, shape: tuple[int, int, int], data: StreamReader) -> Alive:
        K, C, n = shape
        return Alive(data.bits(K * C), n)
