"""Weight sharing: the live weights of a layer take few values, by k-means (Han et al., 2015, arXiv 1510.00149)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfire_cli.errors import BadOption, unknown
from starfire_cli.pruning.entropy_kmeans import entropy_kmeans
from starfire_cli.pruning.kmeans import Floats, density, drawn, kmeans, linear
from starfire_cli.registry import built, spec_options

NAME = "codebook"
INITS = ("density", "linear", "random")
MOST_BITS = 8
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """Settings of the layers' codebooks: the number of values that live weights share, and the start of k-means.

    The paper shares 2^8 values in a convolution and 2^5 in a linear layer, and begins at equal distances.

    Args:
        bits: a layer shares at most 2^bits values, 1 to 8.
        conv_bits: the same for convolutions alone.
        fc_bits: the same for linear layers alone.
        init: the first centroids: "linear" at equal distances from the least to the largest weight, "density" at equal
            shares of the weights, "random" drawn from them.
        seed: of what is drawn.
        rate: bits that the number of a weight's value may take on average in a layer, entropy-coded; then values that
            many weights share are preferred, and the nearest is not always taken. None: the nearest, k-means.
    """

    bits: int = 5
    conv_bits: int | None = None
    fc_bits: int | None = None
    init: str = "linear"
    seed: int = 0
    rate: float | None = None

    def __post_init__(self) -> None:
        for name, bits in (("bits", self.bits), ("conv_bits", self.conv_bits), ("fc_bits", self.fc_bits)):
            if bits is not None and not 1 <= bits <= MOST_BITS:
                raise BadOption(f"{name}={bits} is out of range: 1 to {MOST_BITS}, for 2 to {1 << MOST_BITS} values")
        if self.init not in INITS:
            raise unknown("init", self.init, INITS)
        if self.seed < 0:
            raise BadOption(f"seed={self.seed} is out of range: a whole number, 0 or more")
        if self.rate is not None and not 0 < self.rate <= MOST_BITS:
            raise BadOption(f"rate={self.rate:g} is out of range: bits a weight, above 0 and up to {MOST_BITS}")

    def size(self, tensor: Tensor) -> int:
        """The most values that the weights of a tensor may share: (K, C, R, S) of a convolution, else linear."""
        own = self.conv_bits if tensor.ndim > 2 else self.fc_bits
        return 1 << (self.bits if own is None else own)

    @property
    def spec(self) -> str:
        """The text that `parse` makes the same codebook of."""
        return f"{NAME}:{spec_options(self, 'bits')}"


def parse(flag: str, text: str) -> Codebook:
    """`codebook` or `codebook:bits=4` to a `Codebook`. Raises BadOption."""
    name, _, options = text.partition(":")
    if name != NAME:
        raise unknown(flag, text, [NAME])
    return built(Codebook, options, f"{flag} {text!r}", NAME)


class Shared(NamedTuple):
    """Shared values in ascending order, (A,), of the tensor's type, and the number of the one that each weight has.

    The numbers are uint8, of the tensor's shape, and 0 where nothing is shared.
    """

    values: Tensor
    numbers: Tensor


def share(tensor: Tensor, live: Tensor, codebook: Codebook, key: str) -> Shared:
    """Shared values for the live weights of a tensor; its own, where these are few enough.

    Args:
        tensor: of a type in `FLOATS`, on the CPU.
        live: the weights that share, finite; bool, of the same shape.
        codebook: how many values.
        key: of the tensor, which with the seed decides what is drawn.
    """
    # Every 16-bit float is one of 32 bits.
    exact: NDArray[Any] = (tensor if tensor.dtype.itemsize > 2 else tensor.float()).detach()[live].numpy()
    numbers = torch.zeros(tensor.shape, dtype=torch.uint8)
    if not exact.size:
        return Shared(tensor.new_empty(0), numbers)
    ordered = np.sort(exact)
    count = codebook.size(tensor)
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    if len(first) <= count:
        centroids, last = ordered[first].astype(np.float64), ordered[first]
    else:
        values = ordered.astype(np.float64)
        begin = _first_centroids(values, count, codebook, key)
        found = kmeans(values, begin) if codebook.rate is None else entropy_kmeans(values, begin, codebook.rate)
        centroids, begins = found
        last = ordered[begins[1:] - 1]
    numbers[live] = torch.from_numpy(np.searchsorted(last, exact).astype(np.uint8))
    return Shared(torch.from_numpy(centroids).to(tensor.dtype), numbers)


def _first_centroids(values: Floats, count: int, codebook: Codebook, key: str) -> Floats:
    if codebook.init == "random":
        return drawn(values, count, np.random.default_rng((codebook.seed, zlib.crc32(key.encode()))))
    return (linear if codebook.init == "linear" else density)(values, count)
