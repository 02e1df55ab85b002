"""Weight sharing: the live weights of a layer take few values, by k-means (Han et al., 2015, arXiv 1510.00149)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfire_cli.errors import BadOption, unknown
from starfire_cli.pruning.entropy_kmeans import entropy_kmeans
from starfire_cli.pruning.kmeans import Floats, density, drawn, linear
from starfire_cli.pruning.noise_kmeans import noise_kmeans, price_of_noise
from starfire_cli.registry import built, spec_options

NAME = "codebook"
INITS = ("density", "linear", "random")
MOST_BITS = 8
NOISE = 0.019
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
            many weights share are preferred, and the nearest is not always taken. None: as `noise` says.
        noise: the squared error of a layer over the sum of its squared weights, on average over the layers, up to which
            bits are saved where they take away the least of it (default 0.019). 0: the nearest value always, k-means.
    """

    bits: int = 5
    conv_bits: int | None = None
    fc_bits: int | None = None
    init: str = "linear"
    seed: int = 0
    rate: float | None = None
    noise: float | None = None

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
        if self.noise is not None and not 0 <= self.noise < 1:
            raise BadOption(f"noise={self.noise:g} is out of range: squared error over squares, 0 to below 1")
        if self.rate is not None and self.noise is not None:
            raise BadOption(f"rate={self.rate:g} and noise={self.noise:g} are two limits; give one")

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


def price_of_bits(layers: Mapping[str, tuple[Tensor, Tensor]], codebook: Codebook) -> float:
    """The noise that one bit is worth in every layer (see `noise_kmeans`); 0 for the nearest value always.

    Args:
        layers: each tensor of a network that shares values, and which of its weights do, as for `share`.
        codebook: its settings.
    """
    noise = NOISE if codebook.noise is None else codebook.noise
    if codebook.rate is not None or not noise:
        return 0.0
    ordered, first = list[NDArray[Any]](), list[Callable[[Floats], Floats]]()
    for key, (tensor, live) in layers.items():
        count, exact = codebook.size(tensor), np.sort(_numbers(tensor, live))
        if len(_begins(exact)) > count:
            ordered.append(exact)
            first.append(partial(_first_centroids, count=count, codebook=codebook, key=key))
    return price_of_noise(ordered, lambda number, values: first[number](values), noise)


def share(tensor: Tensor, live: Tensor, codebook: Codebook, key: str, price: float = 0.0) -> Shared:
    """Shared values for the live weights of a tensor; its own, where these are few enough.

    Args:
        tensor: of a type in `FLOATS`, on the CPU.
        live: the weights that share, finite; bool, of the same shape.
        codebook: how many values.
        key: of the tensor, which with the seed decides what is drawn.
        price: of `price_of_bits`.
    """
    exact = _numbers(tensor, live)
    numbers = torch.zeros(tensor.shape, dtype=torch.uint8)
    if not exact.size:
        return Shared(tensor.new_empty(0), numbers)
    ordered = np.sort(exact)
    count = codebook.size(tensor)
    first = _begins(ordered)
    if len(first) <= count:
        centroids, last = ordered[first].astype(np.float64), ordered[first]
    else:
        values = ordered.astype(np.float64)
        begin = _first_centroids(values, count, codebook, key)
        if codebook.rate is None:
            centroids, begins = noise_kmeans(values, begin, price)
        else:
            centroids, begins = entropy_kmeans(values, begin, codebook.rate)
        last = ordered[begins[1:] - 1]
    numbers[live] = torch.from_numpy(np.searchsorted(last, exact).astype(np.uint8))
    return Shared(torch.from_numpy(centroids).to(tensor.dtype), numbers)


def _numbers(tensor: Tensor, live: Tensor) -> NDArray[Any]:
    """The live weights as numpy knows them: every 16-bit float is one of 32 bits."""
    exact: NDArray[Any] = (tensor if tensor.dtype.itemsize > 2 else tensor.float()).detach()[live].numpy()
    return exact


def _begins(ordered: NDArray[Any]) -> NDArray[np.intp]:
    """The places in ascending values where another value begins."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))[: ordered.size]


def _first_centroids(values: Floats, count: int, codebook: Codebook, key: str) -> Floats:
    if codebook.init == "random":
        return drawn(values, count, np.random.default_rng((codebook.seed, zlib.crc32(key.encode()))))
    return (linear if codebook.init == "linear" else density)(values, count)
