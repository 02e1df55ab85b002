"""Single weights are dead, anywhere: a bit a weight, or the gaps between live ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from starfire_cli.formats.encoding import ENCODINGS, Alive
from starfire_cli.formats.information import log2_choose
from starfire_cli.formats.streams import Bits, Reader, Writer


@ENCODINGS.register("unstructured")
@dataclass(frozen=True, kw_only=True)
class Unstructured:
    """Says any mask."""

    def encode(self, mask_KCn: Bits, out: Writer) -> float | None:
        out.bits(mask_KCn.reshape(-1))
        return log2_choose(mask_KCn.size, np.array([mask_KCn.sum()]))

    def decode(self, shape: tuple[int, int, int], data: Reader) -> Alive:
        K, C, n = shape
        return Alive(data.bits(K * C * n))
