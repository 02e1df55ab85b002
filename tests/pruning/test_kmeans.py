"""K-means of numbers against literal loops and scikit-learn, and shared values of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from starfire_cli.errors import BadOption
from starfire_cli.pruning.codebook import Codebook, parse, share
from starfire_cli.pruning.entropy_kmeans import entropy_kmeans, envelope
from starfire_cli.pruning.kmeans import Clusters, density, drawn, kmeans, linear


def literal_lloyd(values: list[float], centroids: list[float], iterations: int) -> tuple[list[float], list[int]]:
    """(centroids, label of each value): nearest centroid, the lower of two at one distance; empty ones stay."""
    labels: list[int] = []
    for _ in range(iterations + 1):
        now = [min(range(len(centroids)), key=lambda i: (abs(x - centroids[i]), i)) for x in values]
        if now == labels:
            break
        labels = now
        for i in range(len(centroids)):
            own = [x for x, label in zip(values, labels, strict=True) if label == i]
            if own:
                centroids[i] = sum(own) / len(own)
    return centroids, labels


@given(
    st.lists(st.integers(-(2**12), 2**12).map(lambda n: n / 64), min_size=1, max_size=60),
    st.integers(1, 9),
    st.sampled_from([0, 1, 2, 300]),
)
def test_it_is_lloyds_loop(numbers: list[float], count: int, iterations: int) -> None:
    values = np.sort(np.array(numbers))
    first = linear(values, count)
    found = kmeans(values, first, iterations)
    _, labels = literal_lloyd(values.tolist(), first.tolist(), iterations)
    ours = np.repeat(np.arange(len(found.centroids)), np.diff(found.begins))
    kept = sorted(set(labels))
    if iterations == 300:  # where it has come to its end, labels and means belong together
        assert ours.tolist() == [kept.index(label) for label in labels]
    means = [np.mean(values[ours == i]) for i in range(len(found.centroids))]
    np.testing.assert_allclose(found.centroids, means, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("start", [linear, density])
def test_it_is_scikit_learns(seed: int, start: object) -> None:
    values = np.sort(np.random.default_rng(seed).uniform(-1, 1, 3000))
    first = (linear if start is linear else density)(values, 16)
    theirs = KMeans(16, init=first[:, None], n_init=1, tol=0, max_iter=3000, algorithm="lloyd").fit(values[:, None])
    ours = kmeans(values, first, 3000)
    np.testing.assert_allclose(ours.centroids, np.sort(theirs.cluster_centers_[:, 0]), rtol=0, atol=1e-12)
    assert np.diff(ours.begins).tolist() == np.bincount(theirs.labels_).tolist()


def test_first_centroids() -> None:
    values = np.array([-1.0, 0, 0, 0, 0, 0, 0, 2])
    assert linear(values, 4).tolist() == [-1, 0, 1, 2]
    assert density(values, 4).tolist() == [0, 0, 0, 2]
    one, again, other = (drawn(values, 4, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2))
    assert one == again and len(one) == 4 and set(one) <= set(values) and one == sorted(one) and one != other


def weights(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    live = torch.rand(shape, generator=generator) < 0.4
    return torch.randn(shape, generator=generator) * live, live


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("init", ["linear", "density", "random"])
def test_each_live_weight_gets_its_nearest_value_and_dead_ones_none(dtype: torch.dtype, init: str) -> None:
    tensor, live = weights(20, 10, 3, 3)
    tensor = tensor.to(dtype)
    shared = share(tensor, live, Codebook(bits=3, init=init), "w")
    assert shared.values.dtype is dtype and shared.numbers.shape == tensor.shape and not shared.numbers[~live].any()
    assert len(shared.values) == 8 == int(shared.numbers.max()) + 1
    exact = tensor.double()[live]
    distance = (exact[:, None] - shared.values.double()).abs()
    own = distance.gather(1, shared.numbers[live].long()[:, None])[:, 0]
    slack = 0 if dtype.itemsize > 4 else float(shared.values.double().abs().max()) * torch.finfo(dtype).eps
    assert bool((own <= distance.min(1).values + 2 * slack).all())
    for number, value in enumerate(shared.values.double().tolist()):
        assert value == pytest.approx(
            float(exact[shared.numbers[live] == number].mean()), rel=torch.finfo(dtype).eps * 2
        )


def test_few_values_are_kept_as_they_are_and_none_or_one_is_no_trouble() -> None:
    codebook = Codebook(bits=2)
    live = torch.tensor([True, True, True, False, True])
    tensor = torch.tensor([0.1, -3e38, 0.1, 0.0, 3e38])
    shared = share(tensor, live, codebook, "w")
    assert shared.values.tolist() == [tensor[1], tensor[0], tensor[4]] and shared.numbers.tolist() == [1, 0, 1, 0, 2]
    alone = share(tensor, live & (tensor < 0), codebook, "w")
    assert alone.values.tolist() == [tensor[1]] and not alone.numbers.any()
    none = share(tensor, live & False, codebook, "w")
    assert not len(none.values) and none.numbers.shape == tensor.shape
    assert share(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), codebook, "w").numbers.shape == (0, 3)


def test_a_convolution_and_a_linear_layer_may_have_other_sizes() -> None:
    codebook = parse("--values", "codebook:bits=3,conv-bits=6,fc_bits=2,init=density")
    sizes = [len(share(*weights(*shape), codebook, "w").values) for shape in ((30, 20, 3, 3), (40, 30))]
    assert sizes == [64, 4] and codebook.spec == "codebook:bits=3,conv_bits=6,fc_bits=2,init=density"
    assert parse("--values", codebook.spec) == codebook and Codebook().spec == "codebook:bits=5"


def test_what_is_drawn_depends_on_the_seed_and_the_layer() -> None:
    tensor, live = weights(30, 30)
    found = [
        share(tensor, live, Codebook(init="random", seed=s), k).values
        for s, k in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    ]
    assert (
        torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("codebook:bits=0", "bits=0 is out of range: 1 to 8"),
        ("codebook:conv-bits=9", "conv_bits=9 is out of range: 1 to 8"),
        ("codebook:bits=2.5", "bits='2.5' is not a whole number"),
        (
            "codebook:bit=5",
            "'bit=5' is not an option of codebook; options: bits=..., conv_bits=..., fc_bits=..., init=",
        ),
        ("codebook:init=kmeans++", "unknown init 'kmeans++'; there are: density, linear, random."),
        ("codebook:seed=-1", "seed=-1 is out of range"),
        ("kmeans", "unknown --values 'kmeans'; there are: codebook."),
    ],
)
def test_what_means_nothing_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadOption) as caught:
        parse("--values", text)
    assert says in str(caught.value) and text.partition(":")[0] in str(caught.value)


@given(st.lists(st.integers(-60, 60), min_size=1, max_size=9, unique=True), st.integers(0, 2**32 - 1))
def test_the_envelope_is_the_best_centroid_of_each_number(places: list[int], seed: int) -> None:
    centroids = np.sort(np.array(places, float))
    costs = np.random.default_rng(seed).choice([0.0, 1, 30, 500, 4000], len(places))
    kept, borders = envelope(centroids, costs)
    for x in np.arange(-80, 80, 0.37):
        best = min((x - c) ** 2 + cost for c, cost in zip(centroids, costs, strict=True))
        mine = kept[int(np.searchsorted(borders, x))]
        assert (x - mine) ** 2 + costs[centroids.tolist().index(mine)] == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("rate", [0.3, 1, 2, 3.1])
def test_a_rate_is_met_with_less_error_than_fewer_values_of_kmeans(rate: float) -> None:
    values = np.sort(np.random.default_rng(0).normal(size=4000))
    found = entropy_kmeans(values, linear(values, 32), rate)
    share_of = np.diff(found.begins) / len(values)
    bits = -float((share_of * np.log2(share_of)).sum())
    assert rate - 0.2 < bits <= rate

    def error(clusters: Clusters) -> float:
        return float(((values - np.repeat(clusters.centroids, np.diff(clusters.begins))) ** 2).mean())

    assert error(found) < error(kmeans(values, linear(values, 2 ** int(rate))))
    if rate >= 1:  # within a quarter of a bit of Shannon's limit for a Gaussian there is at most 1.53 dB
        assert error(found) < 1.5 * values.var() * 4.0**-bits
    assert (
        entropy_kmeans(values, linear(values, 32), 8).begins.tolist()
        == kmeans(values, linear(values, 32)).begins.tolist()
    )


@pytest.mark.parametrize("values", [np.arange(64.0), np.repeat([-2.0, -1, 1, 2], 5), np.arange(64) * 1e-200])
@pytest.mark.parametrize("rate", [0.5, 1, 2.5])
def test_equal_shares_have_no_price(values: np.ndarray, rate: float) -> None:
    found = entropy_kmeans(values, linear(values, 32)[::16] if len(values) < 64 else linear(values, 32), rate)
    shares = np.diff(found.begins) / len(values)
    assert -float((shares * np.log2(shares)).sum()) <= rate + 1e-12 and len(shares) >= 2 ** int(rate) // 2


def test_a_rate_is_kept_by_tensors() -> None:
    tensor, live = weights(40, 40, seed=3)
    numbers = share(tensor, live, Codebook(rate=1.5), "w").numbers[live]
    shares = torch.bincount(numbers) / len(numbers)
    assert 1.3 < float(-(shares * shares.log2()).sum()) <= 1.5 + 1e-6
    with pytest.raises(BadOption, match="rate=0 is out of range: bits a weight, above 0 and up to 8"):
        parse("--values", "codebook:rate=0")
