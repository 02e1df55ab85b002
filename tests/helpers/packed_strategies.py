"""Checkpoints to pack: every type and shape, masks of every structure, values with every bit pattern."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
DTYPES = (*FLOATS, *INTS, torch.bool, torch.complex64, torch.complex128)


def generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**31)))


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Any bit patterns: NaN with payloads, infinities, subnormals, -0.0."""
    item = torch.empty((), dtype=dtype).element_size()
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator(rng)) < 0.5
    count = int(np.prod(shape))
    data = torch.from_numpy(rng.integers(0, 256, max(1, count) * item, dtype=np.uint8))
    return data.view(dtype)[:count].reshape(shape)


def weights(dtype: torch.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Values as weights have them, some of them 0.0, -0.0 and NaN."""
    values = rng.standard_normal(int(np.prod(shape))) * 0.05
    for special in (0.0, -0.0, np.nan, np.inf):
        values[rng.random(values.shape) < 0.03] = special
    return torch.from_numpy(values).to(dtype).reshape(shape)


def unstructured(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    return torch.rand(shape, generator=generator(rng)) < float(rng.choice([0, 0.001, 0.02, 0.2, 0.5, 0.9, 1]))


def kernels(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    alive = rng.random(shape[:2]) < rng.choice([0, 0.01, 0.2, 0.5, 1])
    return torch.from_numpy(np.broadcast_to(alive.reshape(*shape[:2], *[1] * (len(shape) - 2)), shape).copy())


def windows(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Up to three different counts."""
    n = int(np.prod(shape[2:]))
    counts = rng.choice(rng.integers(0, n + 1, rng.integers(1, 4)), shape[:2])
    order = rng.random((*shape[:2], n)).argsort(-1).argsort(-1)
    return torch.from_numpy(order < counts[..., None]).reshape(shape)


def tiles(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Tiles, with or without single dead weights in the live ones."""
    side = int(rng.integers(2, 6))
    rows, columns = (-(-s // side) for s in shape[:2])
    mask = (rng.random((rows, columns)) < 0.4).repeat(side, 0).repeat(side, 1)[: shape[0], : shape[1]]
    if rng.random() < 0.5:
        mask = mask & (rng.random(mask.shape) < 0.6)
    return torch.from_numpy(np.broadcast_to(mask.reshape(*shape[:2], *[1] * (len(shape) - 2)), shape).copy())


STRUCTURES: tuple[Callable[[tuple[int, ...], np.random.Generator], Tensor], ...] = (
    unstructured,
    kernels,
    windows,
    tiles,
)
SHAPES = st.one_of(
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(1), st.just(1)),
    st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(1, 8)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(9), st.just(9)),
    st.sampled_from([(), (0,), (5,), (3, 0), (2, 3, 0, 3), (4, 6, 5), (2, 3, 2, 2, 2), (1, 1), (70, 1000)]),
)


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict and masks for some of it; what is dead is +0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    state: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for number in range(draw(st.integers(0, 5))):
        shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
        key = draw(st.sampled_from(["layer{}.weight", "{}.packed", 'a"b\\ü{}', "bn{}.running_mean"])).format(number)
        make = weights if dtype in FLOATS and draw(st.booleans()) else random_bits
        tensor = make(dtype, shape, rng)
        if draw(st.booleans()):
            structure = draw(st.sampled_from(STRUCTURES if len(shape) >= 2 and 0 not in shape else STRUCTURES[:1]))
            mask = structure(shape, rng)
            tensor = torch.where(mask, tensor, torch.zeros((), dtype=dtype))
            if draw(st.booleans()):
                masks[key] = mask
        state[key] = tensor
    return state, masks


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal type, shape and bytes."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.numel() == 0 or torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
