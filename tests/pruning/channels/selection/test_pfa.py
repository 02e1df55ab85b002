"""PFA's counts by hand and against scipy's formula, its order against a literal loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from starfire_cli.pruning.channels.selection import pfa


def responses(seed: int, channels: int = 8, images: int = 50) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    common = torch.randn(images, 3, generator=draws)
    mixed = common @ torch.randn(3, channels, generator=draws) + 0.5 * torch.randn(images, channels, generator=draws)
    return mixed * torch.rand(channels, generator=draws) + 2


def test_the_covariance_is_the_unbiased_one() -> None:
    seen = responses(0)
    np.testing.assert_allclose(pfa.covariance(seen).numpy(), np.cov(seen.double().numpy().T), rtol=1e-9)


def test_the_spectrum_falls_and_is_not_negative() -> None:
    seen = responses(1, channels=8, images=4)  # of rank 3
    found = pfa.spectrum(pfa.covariance(seen))
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    assert float(found.min()) >= 0 and int((found > 1e-9).sum()) == 3


@pytest.mark.parametrize(
    ("spectrum", "kept"),
    [
        ([1.0, 1.0, 1.0, 1.0], 4),  # uniform: divergence 0
        ([1.0, 0.0, 0.0, 0.0], 1),  # one direction: divergence log 4, nothing by the formula, and one stays
        ([1.0, 1.0, 0.0, 0.0], 3),  # a half, which the epsilon of the public code tips up
        ([1.01, 0.99, 0.0, 0.0], 2),
        ([3.0, 1.0, 0.0, 0.0], 2),  # log 4 - H(3/4, 1/4) = 0.824; 4 (1 - 0.594) = 1.62
        ([3.0, 3.0, 1.0, 1.0], 4),  # log 4 - 1.2555 = 0.131; 4 (1 - 0.0944) = 3.62
        ([5.0], 1),
        ([0.0, 0.0, 0.0], 3),  # no response at all: the recipe sees a flat spectrum
    ],
)
def test_the_kl_recipe(spectrum: list[float], kept: int) -> None:
    assert pfa.count_by_kl(torch.tensor(spectrum, dtype=torch.float64)) == kept


@pytest.mark.parametrize("seed", range(5))
def test_the_kl_recipe_by_its_formula(seed: int) -> None:
    found = pfa.spectrum(pfa.covariance(responses(seed)))
    p = found.numpy() / found.numpy().sum()
    divergence = sum(x * math.log(x * 8) for x in p if x > 0)
    assert pfa.count_by_kl(found) == math.ceil(8 * (1 - divergence / math.log(8)))


@pytest.mark.parametrize(
    ("energy", "kept"), [(0.1, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (0.9375, 4), (0.95, 5), (1.0, 5)]
)
def test_the_energy_recipe(energy: float, kept: int) -> None:
    assert pfa.count_by_energy(torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64), energy) == kept


def test_one_energy_for_all_layers_meets_a_size() -> None:
    flat, steep = torch.ones(4, dtype=torch.float64), torch.tensor([96.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    # Energies before each channel: flat 0, .25, .5, .75; steep 0, .96, .98, .99.
    assert [pfa.counts_by_size([steep, flat], keep) for keep in range(2, 9)] == [
        [1, 1], [1, 2], [1, 3], [1, 4], [2, 4], [3, 4], [4, 4],
    ]  # fmt: skip
    for keep in range(2, 9):
        energies = [count / 100 for count in range(1, 101)]
        counts = [[pfa.count_by_energy(x, e) for x in (steep, flat)] for e in energies]
        assert keep not in map(sum, counts) or pfa.counts_by_size([steep, flat], keep) in counts


def order_by_loops(cov: Tensor) -> list[int]:
    """The paper's: the unit most correlated with those left goes, and leaves the matrix."""
    c = cov.numpy()
    units = range(len(c))
    gone = [i for i in units if abs(c[i, i]) < 1e-8 * max(abs(c[j, j]) for j in units)]
    while len(gone) < len(c):
        left = [i for i in units if i not in gone]
        sums = {i: sum(abs(c[i, j]) / math.sqrt(c[i, i] * c[j, j]) for j in left if j != i) for i in left}
        gone.append(max(left, key=lambda i: sums[i]))
    return gone


@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_the_papers(seed: int) -> None:
    seen = responses(seed)
    assert pfa.removal_order(pfa.covariance(seen))[:-1] == order_by_loops(pfa.covariance(seen))[:-1]


def test_inactive_channels_go_first_and_ties_by_the_largest_correlation() -> None:
    seen = responses(9)
    seen[:, [2, 6]] = 3.0
    cov = pfa.covariance(seen)
    assert pfa.inactive_channels(cov) == [2, 6]
    assert pfa.removal_order(cov)[:2] == [2, 6]
    # All sums of |correlations| are 1; only 2 and 3 have a single one of 0.9, and 2 comes first.
    tied = torch.tensor([[1, 0.5, 0.1, 0.4], [0.5, 1, 0.5, 0], [0.1, 0.5, 1, 0.4], [0.4, 0, 0.4, 1]]).double()
    even = torch.tensor([[1, 0.5, 0.5, 0], [0.5, 1, 0, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1]]).double()
    uneven = torch.tensor([[1, 0.5, 0.3, 0.2], [0.5, 1, 0.2, 0.3], [0.3, 0.2, 1, 0.5], [0.2, 0.3, 0.5, 1]]).double()
    uneven[0, 1] = uneven[1, 0] = 0.4
    uneven[0, 2] = uneven[2, 0] = uneven[1, 3] = uneven[3, 1] = 0.4
    assert pfa.removal_order(tied)[0] == 0  # 1.0, 1.0, 1.0, 0.8; 0, 1 and 2 have a 0.5
    assert pfa.removal_order(even)[0] == 0
    assert pfa.removal_order(uneven)[0] == 2  # all 1.0 or so; 2 and 3 have a 0.5, the others 0.4
