"""Nothing is dead: the mask takes no bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from starfire_cli.formats.packed.encoding import ENCODINGS, Alive
from starfire_cli.formats.packed.streams import Bits, StreamReader, StreamWriter


@ENCODINGS.register("dense")
@dataclass(frozen=True, kw_only=True)
class DenseEncoding:
    """All weights are alive."""

    def bound(self, mask_KCn: Bits) -> float | None:
        return 0.0 if mask_KCn.all() else None

    def encode(self, mask_KCn: Bits, out: StreamWriter) -> float | None:
        return self.bound(mask_KCn)

    def decode(self, shape: tuple[int, int, int], data: StreamReader) -> Alive:
        return Alive(np.ones(1, np.bool_), math.prod(shape))
