"""ThiNet's choices against its papers as literal loops over least squares fits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from starfire_cli.pruning.channels.selection.thinet import grow_kept, grow_removed, scales


def contributions(seed: int, channels: int = 9, rows: int = 60) -> Tensor:
    """Channels of different strength, some of them alike."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=draws) * torch.linspace(0.2, 2, channels)
    x[:, 3] = 0.7 * x[:, 5] + 0.1 * x[:, 3]
    return x + 0.5 * torch.randn(rows, 1, generator=draws)


def kept_by_loops(x_MC: Tensor, keep: int) -> list[int]:
    """TPAMI 2019: fit each channel to the residual, take the best, fit all that are in to the output anew."""
    x = x_MC.double().numpy()
    y = residual = x.sum(1)
    chosen: list[int] = []
    for _ in range(keep):
        errors = {}
        for j in (j for j in range(x.shape[1]) if j not in chosen):
            w = x[:, j] @ residual / (x[:, j] @ x[:, j])
            errors[j] = np.linalg.norm(residual - w * x[:, j])
        chosen.append(min(errors, key=lambda j: errors[j]))
        w_all = np.linalg.lstsq(x[:, chosen], y, rcond=None)[0]
        residual = y - x[:, chosen] @ w_all
    return sorted(chosen)


def left_by_loops(x_MC: Tensor, keep: int) -> list[int]:
    """ICCV 2017: the next that goes makes the sum of all that is gone shortest."""
    x = x_MC.double().numpy()
    gone: list[int] = []
    while len(gone) < x.shape[1] - keep:
        left = [j for j in range(x.shape[1]) if j not in gone]
        gone.append(min(left, key=lambda j: np.linalg.norm(x[:, [*gone, j]].sum(1))))
    return sorted(set(range(x.shape[1])) - set(gone))


@pytest.mark.parametrize(("rule", "loops"), [(grow_kept, kept_by_loops), (grow_removed, left_by_loops)])
@pytest.mark.parametrize("seed", range(4))
def test_a_rule_is_that_of_its_paper(
    rule: Callable[[Tensor, int], list[int]], loops: Callable[[Tensor, int], list[int]], seed: int
) -> None:
    x_MC = contributions(seed)
    for keep in range(1, 9):
        assert rule(x_MC, keep) == loops(x_MC, keep), keep
    assert rule(x_MC, 9) == list(range(9))


@pytest.mark.parametrize("rule", [grow_kept, grow_removed])
def test_of_channels_that_are_alike_the_first_wins_or_goes(rule: Callable[[Tensor, int], list[int]]) -> None:
    column = torch.randn(30, 1, generator=torch.Generator().manual_seed(0))
    kept = rule(column.expand(30, 4).contiguous(), 2)
    assert kept == ([0, 1] if rule is grow_kept else [2, 3])


@pytest.mark.parametrize("rule", [grow_kept, grow_removed])
def test_dead_channels_go_first(rule: Callable[[Tensor, int], list[int]]) -> None:
    x_MC = contributions(1)
    x_MC[:, [0, 8]] = 0
    assert rule(x_MC, 7) == [1, 2, 3, 4, 5, 6, 7]
    assert set(rule(x_MC, 8)) > {1, 2, 3, 4, 5, 6, 7}
    assert bool(scales(x_MC, rule(x_MC, 8)).isfinite().all())


def test_the_factors_are_the_least_squares_fit() -> None:
    x_MC = contributions(2)
    kept = [1, 4, 5, 7]
    expected = np.linalg.lstsq(x_MC[:, kept].double().numpy(), x_MC.double().numpy().sum(1), rcond=None)[0]
    np.testing.assert_allclose(scales(x_MC, kept).numpy(), expected, rtol=1e-9)
    assert torch.allclose(scales(x_MC, list(range(9))), torch.ones(9, dtype=torch.float64))
