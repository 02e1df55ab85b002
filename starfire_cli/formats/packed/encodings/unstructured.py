"""Single weights are dead, anywhere: a bit a weight, or the gaps between live ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from starfire_cli.formats.packed.encoding import ENCODINGS, Alive
from starfire_cli.formats.packed.information import counts_bits, log2_choose
from starfire_cli.formats.packed.streams import Bits, StreamReader, StreamWriter


@ENCODINGS.register("unstructured")
@dataclass(frozen=True, kw_only=True)
class UnstructuredEncoding:
    """Says any mask."""

    def encode(self, mask_KCn: Bits, out: StreamWriter) -> float | None:
        out.bits(mask_KCn.reshape(-1))
        return self.bound(mask_KCn)

    def bound(self, mask_KCn: Bits) -> float | None:
        anywhere = log2_choose(mask_KCn.size, np.array([mask_KCn.sum()]))
        # Pruned by the ck rule, 1 x 1 kernels keep equally many weights of each input channel: a little less to say.
        kept_Cn = mask_KCn.sum(0)
        return min(anywhere, log2_choose(len(mask_KCn), kept_Cn) + counts_bits(kept_Cn))

    def decode(self, shape: tuple[int, int, int], data: StreamReader) -> Alive:
        K, C, n = shape
        return Alive(data.bits(K * C * n))
