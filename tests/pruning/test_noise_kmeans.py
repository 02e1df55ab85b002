"""Bits divided among layers: the noise that is allowed is met, and it costs fewer bits than shared out evenly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from starfire_cli.errors import BadOption
from starfire_cli.formats.packed.rounding import share_state
from starfire_cli.pruning.codebook import Codebook, parse, price_of_bits, share
from starfire_cli.pruning.entropy_kmeans import entropy_kmeans
from starfire_cli.pruning.kmeans import Clusters, kmeans, linear
from starfire_cli.pruning.noise_kmeans import noise_kmeans, noise_of, price_of_noise


def literal_noise(exact: Tensor, rounded: Tensor) -> float:
    pairs = list(zip(exact.double().tolist(), rounded.double().tolist(), strict=True))
    return math.fsum((a - b) ** 2 for a, b in pairs) / math.fsum(a * a for a, _ in pairs)


def literal_bits(values: Tensor) -> float:
    """The number of a weight's value, entropy-coded, in all."""
    counts = values.unique(return_counts=True)[1].tolist()
    return sum(n * math.log2(sum(counts) / n) for n in counts)


def network(*sizes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"l{i}": torch.randn(10, n // 10, generator=generator) * 10.0**i for i, n in enumerate(sizes)}


def test_at_no_price_it_is_kmeans_and_no_size_of_numbers_matters() -> None:
    values = np.sort(np.random.default_rng(0).normal(size=500))
    first = linear(values, 16)
    assert noise_kmeans(values, first, 0).begins.tolist() == kmeans(values, first).begins.tolist()
    for price in (0.0, 1e-4):
        found = noise_kmeans(values, first, price)
        for size in (2.0**-600, 2.0**500):
            again = noise_kmeans(values * size, first * size, price)
            assert again.begins.tolist() == found.begins.tolist()
            assert noise_of(values * size, again) == pytest.approx(noise_of(values, found), rel=1e-9)


def test_each_value_is_where_its_noise_and_bits_cost_least() -> None:
    values = np.sort(np.random.default_rng(3).normal(size=400))
    energy = float((values**2).sum())
    for price in (1e-6, 1e-5, 1e-4):
        found = noise_kmeans(values, linear(values, 16), price)
        counts = np.diff(found.begins)
        own = np.repeat(np.arange(len(counts)), counts)
        for x, mine in zip(values, own, strict=True):
            costs = (x - found.centroids) ** 2 / energy + price * np.log2(len(values) / counts)
            assert costs[mine] <= costs.min() + 1e-12


def test_the_noise_is_met_and_costs_fewer_bits_than_shared_out_evenly() -> None:
    state = network(20000, 2000, 500)
    found, _ = share_state(state, {}, Codebook())
    noises = [literal_noise(state[key].flatten(), found[key].flatten()) for key in state]
    assert 0.016 < sum(noises) / 3 <= 0.019
    assert noises[0] > noises[1] > noises[2]  # a bit for each weight of a large layer is many bits
    bits = sum(literal_bits(found[key]) for key in state)
    even = 0.0
    for tensor in state.values():
        values = np.sort(tensor.double().flatten().numpy())
        rates = (entropy_kmeans(values, linear(values, 32), rate / 8) for rate in range(8, 40))
        enough = next(c for c in rates if noise_of(values, c) <= 0.019)
        counts = np.diff(enough.begins)
        even += float((counts * np.log2(counts.sum() / counts)).sum())
    assert bits < 0.9 * even


def test_the_next_price_would_be_too_much() -> None:
    layers = [np.sort(t.double().flatten().numpy()) for t in network(40000, 3000).values()]
    price = price_of_noise(layers, lambda _, values: linear(values, 32), 0.01)

    def mean_noise(at: float) -> float:
        clusters: list[Clusters] = [noise_kmeans(values, linear(values, 32), at) for values in layers]
        return sum(noise_of(v, c) for v, c in zip(layers, clusters, strict=True)) / 2

    assert mean_noise(price) <= 0.01 < mean_noise(price * 2**0.5)
    assert price_of_noise(layers, lambda _, values: linear(values, 4), 0.01) == 0.0  # four values have more noise
    assert price_of_noise([], lambda _, values: values, 0.01) == 0.0


def test_zero_noise_is_kmeans_and_a_second_time_changes_nothing() -> None:
    state = network(2000, 600)
    plain, _ = share_state(state, {}, Codebook(noise=0))
    for key, tensor in state.items():
        shared = share(tensor, tensor != 0, Codebook(), key)
        assert torch.equal(plain[key], shared.values[shared.numbers.int()])
    once, cost = share_state(state, {}, Codebook())
    twice, _ = share_state(once, {}, Codebook())
    assert all(torch.equal(once[key], twice[key]) for key in state) and cost.values == "codebook:bits=5"
    layers = {key: (tensor, tensor != 0) for key, tensor in state.items()}
    assert price_of_bits(layers, Codebook(rate=2)) == price_of_bits(layers, Codebook(noise=0)) == 0.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("codebook:noise=1", "noise=1 is out of range: squared error over squares, 0 to below 1"),
        ("codebook:noise=-0.1", "noise=-0.1 is out of range"),
        ("codebook:rate=2,noise=0.1", "rate=2 and noise=0.1 are two limits; give one"),
    ],
)
def test_limits_that_mean_nothing_are_refused(text: str, says: str) -> None:
    with pytest.raises(BadOption, match=says.replace("=", "=").replace(".", r"\.")):
        parse("--values", text)


def test_equal_first_centroids_are_one() -> None:
    values = np.sort(np.concatenate([np.zeros(900), np.random.default_rng(0).normal(size=100)]))
    first = np.repeat([0.0, 1.0, 2.0], 3)
    assert len(noise_kmeans(values, first, 1e-6).centroids) <= 3
