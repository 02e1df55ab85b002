"""The channels of the LASSO, and the fit behind it, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LinearRegression
from torch import Tensor

from starfire_cli.pruning.channels.selection.lasso import choose_kept, moments
from starfire_cli.pruning.channels.selection.least_squares import fit


def problem(seed: int, channels: int = 12, rows: int = 200) -> tuple[Tensor, Tensor]:
    """Correlated columns as those of activations are, and their sum with noise and an offset."""
    draws = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, 3, generator=draws)
    z = common @ torch.randn(3, channels, generator=draws) + 0.6 * torch.randn(rows, channels, generator=draws)
    return z + 1, z.sum(1) + 0.3 * torch.randn(rows, generator=draws) - 4


def by_bisection(z: Tensor, y: Tensor, keep: int) -> set[int]:
    """He et al.'s search: alpha is doubled until too few are left, then halved in until the number is right."""
    x, target = z.double().numpy(), y.double().numpy()

    def left(alpha: float) -> set[int]:
        found = Lasso(alpha=alpha, tol=1e-10, max_iter=100_000).fit(x, target)
        return set(np.flatnonzero(found.coef_).tolist())

    low, high = 0.0, 1e-3
    while len(left(high)) >= keep:
        high *= 2
    for _ in range(60):
        found = left((low + high) / 2)
        if len(found) == keep:
            return found
        low, high = ((low + high) / 2, high) if len(found) > keep else (low, (low + high) / 2)
    raise AssertionError(f"no alpha leaves {keep}")


@pytest.mark.parametrize("seed", range(3))
def test_the_channels_are_those_of_the_papers_search(seed: int) -> None:
    z, y = problem(seed)
    for keep in (1, 2, 5, 8, 11):
        kept, alpha = choose_kept(*moments([(z, y)]), keep)
        assert len(kept) == keep
        solution = Lasso(alpha=alpha, tol=1e-12, max_iter=100_000).fit(z.double().numpy(), y.double().numpy())
        assert np.flatnonzero(solution.coef_).tolist() == kept, keep
        if seed == 0:
            assert set(kept) == by_bisection(z, y, keep), keep


def test_a_path_on_which_a_channel_drops_out_again() -> None:
    """The last of these problems has one; each solution must still be the LASSO's at its alpha."""
    drops = 0
    for seed in (0, 1, 79):
        z, y = problem(seed, channels=6, rows=30)
        before: set[int] = set()
        for keep in range(1, 6):
            kept, alpha = choose_kept(*moments([(z, y)]), keep)
            left = (moments([(z, y)])[1] - moments([(z, y)])[0][:, kept] @ _betas(z, y, kept, alpha)).numpy()
            assert np.abs(left).max() <= alpha * (1 + 1e-6)
            drops += not before <= set(kept)
            before = set(kept)
    assert drops


def _betas(z: Tensor, y: Tensor, kept: list[int], alpha: float) -> Tensor:
    """The solution on its support: gram beta = moment - alpha sign, with the signs of the correlations left."""
    solution = Lasso(alpha=alpha, tol=1e-12, max_iter=100_000).fit(z.double().numpy(), y.double().numpy())
    return torch.from_numpy(solution.coef_[kept])


def test_moments_of_parts_are_those_of_the_whole() -> None:
    z, y = problem(5)
    whole, parts = moments([(z, y)]), moments(zip(z.split(37), y.split(37), strict=True))
    expected = np.cov(z.double().numpy().T, y.double().numpy(), bias=True)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other)
    np.testing.assert_allclose(whole[0].numpy(), expected[:-1, :-1], rtol=1e-6)
    np.testing.assert_allclose(whole[1].numpy(), expected[:-1, -1], rtol=1e-6)


def test_copies_and_dead_channels_come_last() -> None:
    z, y = problem(6, channels=6)
    z[:, 4], z[:, 2] = z[:, 1], 0
    gram = moments([(z, y)])
    assert choose_kept(*gram, 4)[0] == [0, 1, 3, 5]
    assert choose_kept(*gram, 5)[0] == [0, 1, 3, 4, 5]
    assert choose_kept(*gram, 6) == ([0, 1, 2, 3, 4, 5], 0.0)
    assert choose_kept(torch.zeros(3, 3), torch.zeros(3), 2) == ([0, 1], 0.0)


@pytest.mark.parametrize("constant", [True, False])
def test_the_fit_is_ordinary_least_squares(constant: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 7, generator=draws) + 1, torch.randn(80, 3, generator=draws)
    weights, constants = fit(x, y, constant=constant)
    found = LinearRegression(fit_intercept=constant).fit(x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(weights.numpy(), found.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(constants.numpy(), np.broadcast_to(found.intercept_, 3), rtol=1e-8, atol=1e-10)


def test_a_fit_with_dead_inputs_gives_them_nothing() -> None:
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=draws), torch.randn(40, 2, generator=draws)
    x[:, 2] = 0
    weights, constants = fit(x, y, constant=True)
    others = [0, 1, 3, 4]
    expected, again = fit(x[:, others], y, constant=True)
    assert float(weights[2].abs().max()) < 1e-12
    assert torch.allclose(weights[others], expected, atol=1e-8) and torch.allclose(constants, again)
