"""Intervals and tests are those of the books: against scipy (it comes with sklearn) and plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from starfire_cli.workflows.attack.confidence import bootstrap, mcnemar, wilson


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson(counts: tuple[int, int]) -> None:
    correct, images = counts
    low, high = wilson(correct, images)
    theirs = stats.binomtest(correct, images).proportion_ci(method="wilson")
    assert low == pytest.approx(theirs.low, abs=1e-12) and high == pytest.approx(theirs.high, abs=1e-12)
    assert 0 <= low <= correct / images <= high <= 1 and low < high


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar(only_first: int, only_second: int) -> None:
    exact, mid = mcnemar(only_first, only_second)
    assert (exact, mid) == mcnemar(only_second, only_first)
    tosses = only_first + only_second
    if not tosses:
        assert exact == mid == 1
        return
    assert exact == pytest.approx(stats.binomtest(only_first, tosses).pvalue, rel=1e-9)
    # Fagerland et al. 2013: what is more extreme counts in full, what was seen by half; on both sides, and a tie once.
    seen = stats.binom.pmf(only_first, tosses, 0.5)
    beyond = 2 * stats.binom.cdf(min(only_first, only_second) - 1, tosses, 0.5)
    assert mid == pytest.approx(beyond + seen / 2 if only_first == only_second else beyond + seen, rel=1e-9)


def test_mcnemar_of_very_many_images() -> None:
    exact, mid = mcnemar(20_000, 20_400)
    assert 0 < mid < exact == pytest.approx(stats.binomtest(20_000, 40_400).pvalue, rel=1e-6)
    assert mcnemar(0, 5000) == (0.0, 0.0)  # below the smallest float


def test_bootstrap_is_resampling() -> None:
    rng = np.random.default_rng(0)
    changes = rng.choice(np.array([-1, 0, 1, 2], dtype=np.int8), p=[0.1, 0.7, 0.15, 0.05], size=500)
    drawn = np.array([rng.choice(changes, size=500).mean() for _ in range(4000)])
    low, high = bootstrap(changes, seed=1)
    assert low == pytest.approx(np.percentile(drawn, 2.5), abs=0.006)
    assert high == pytest.approx(np.percentile(drawn, 97.5), abs=0.006)
    assert bootstrap(changes, seed=1) == (low, high) != bootstrap(changes, seed=2)
    assert bootstrap(np.zeros(10, dtype=np.int8), seed=0) == (0, 0)


def test_bootstrap_covers_what_it_should() -> None:
    """Of 95 % intervals of 400 made-up comparisons, some 95 % hold the true difference, 0.05."""
    rng = np.random.default_rng(0)
    kinds = np.array([-1, 0, 1], dtype=np.int8)
    held = 0
    for seed in range(400):
        low, high = bootstrap(rng.choice(kinds, p=[0.1, 0.75, 0.15], size=300), seed=seed, resamples=1000)
        held += low <= 0.05 <= high
    assert 0.91 <= held / 400 <= 0.98
