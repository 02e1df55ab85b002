"""Layers, weights and masks for the tests of methods: all shapes and groupings, many ties, every memory format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from starfire_cli.pruning.layers import Kind, Layer

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WINDOWS = ((3, 3), (1, 1), (5, 5), (3, 1), (1, 7), (2, 2))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer with weights, and what is alive in it."""

    layer: Layer
    weight: Tensor
    alive: Tensor


def conv_layer(shape: tuple[int, ...], groups: int = 1) -> Layer:
    kind: Kind = "pointwise" if shape[2:] == (1, 1) else "window"
    return Layer(name="conv", key="conv.weight", kind=kind, shape=shape, groups=groups)


def linear_layer(shape: tuple[int, ...]) -> Layer:
    return Layer(name="fc", key="fc.weight", kind="linear", shape=shape)


@st.composite
def weights(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Exact in every dtype. Few magnitudes (ties, zeros, constants) or all different, with either sign."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    total = torch.Size(shape).numel()
    if draw(st.booleans()):
        magnitudes = torch.randint(0, draw(st.sampled_from([1, 2, 4, 9])), (total,), generator=generator) / 8
    else:
        magnitudes = (torch.randperm(total, generator=generator) + 1) / 8
    signs = torch.randint(0, 2, (total,), generator=generator) * 2 - 1
    return (magnitudes * signs).reshape(shape)


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Mostly nothing is dead yet; else any pattern."""
    if draw(st.integers(0, 2)):
        return torch.ones(shape, dtype=torch.bool)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.rand(shape, generator=generator) < draw(st.sampled_from([0.2, 0.5, 0.9]))


@st.composite
def conv_cases(draw: st.DrawFn, windows: tuple[tuple[int, int], ...] = WINDOWS, least_channels: int = 1) -> Case:
    groups, per_group = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 6))
    shape = (groups * per_group, draw(st.integers(least_channels, 4)), *draw(st.sampled_from(windows)))
    return Case(layer=conv_layer(shape, groups), weight=draw(weights(shape)), alive=draw(masks(shape)))


@st.composite
def linear_cases(draw: st.DrawFn) -> Case:
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 11)))
    return Case(layer=linear_layer(shape), weight=draw(weights(shape)), alive=draw(masks(shape)))


thresholds = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.88, 0.9, 0.95, 0.99])


def variants(weight: Tensor) -> list[Tensor]:
    """The same numbers in every memory format and dtype that holds them exactly."""
    found = [weight.to(dtype) for dtype in DTYPES if torch.equal(weight.to(dtype).to(weight.dtype), weight)]
    if weight.ndim == 4:
        found += [weight.to(memory_format=torch.channels_last), weight.permute(1, 0, 3, 2).clone().permute(1, 0, 3, 2)]
    else:
        found.append(weight.t().clone().t())
    return [*found, torch.stack([weight, -weight], -1)[..., 0]]
