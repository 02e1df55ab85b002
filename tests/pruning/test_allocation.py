"""Counts by layer: Erdos-Renyi against the published solver's densities, one cutoff for the network against a sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from starfire_cli.pruning.allocation import erdos_renyi, erdos_renyi_densities, globally, kth_of_all, uniform
from starfire_cli.pruning.budget import pruned
from starfire_cli.pruning.layer_units import LayerUnits, Unit
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.schedule import Era
from starfire_cli.pruning.selection import largest, smallest

# Shape -> (how many layers have it, density by ERK and by ER at sparsity 0.8, then at 0.9). Computed once by the rule
# of google-research/rigl (rigl/sparse_utils.py, get_sparsities_erdos_renyi, no layer excluded) on torchvision's
# ResNet-50 and on its WRN-22-2 (rigl/cifar_resnet/resnet_model.py). That rule rounds zeros down layer by layer, which
# moves densities by up to one weight in each layer.
RESNET50 = {
    (64, 3, 7, 7): (1, 0.8572, 1.0, 0.42004, 1.0),
    (64, 64, 1, 1): (1, 1.0, 1.0, 1.0, 0.70588),
    (64, 64, 3, 3): (3, 0.3619, 1.0, 0.17734, 0.70588),
    (256, 64, 1, 1): (4, 1.0, 0.89251, 0.95882, 0.44118),
    (64, 256, 1, 1): (2, 1.0, 0.89251, 0.95882, 0.44118),
    (128, 256, 1, 1): (1, 1.0, 0.5355, 0.5747, 0.26471),
    (128, 128, 3, 3): (4, 0.1769, 0.714, 0.08668, 0.35294),
    (512, 128, 1, 1): (4, 0.97532, 0.44625, 0.47792, 0.22059),
    (512, 256, 1, 1): (1, 0.58489, 0.26775, 0.2866, 0.13235),
    (128, 512, 1, 1): (3, 0.97532, 0.44625, 0.47792, 0.22059),
    (256, 512, 1, 1): (1, 0.58489, 0.26775, 0.2866, 0.13235),
    (256, 256, 3, 3): (6, 0.08744, 0.357, 0.04285, 0.17647),
    (1024, 256, 1, 1): (6, 0.4869, 0.22313, 0.23859, 0.11029),
    (1024, 512, 1, 1): (1, 0.29206, 0.13388, 0.14312, 0.06618),
    (256, 1024, 1, 1): (5, 0.4869, 0.22313, 0.23859, 0.11029),
    (512, 1024, 1, 1): (1, 0.29206, 0.13388, 0.14312, 0.06618),
    (512, 512, 3, 3): (3, 0.04347, 0.1785, 0.0213, 0.08824),
    (2048, 512, 1, 1): (3, 0.24326, 0.11156, 0.1192, 0.05515),
    (2048, 1024, 1, 1): (1, 0.14594, 0.06694, 0.07151, 0.03309),
    (512, 2048, 1, 1): (2, 0.24326, 0.11156, 0.1192, 0.05515),
    (1000, 2048): (1, 0.14818, 0.06801, 0.07261, 0.03362),
}
WRN_22_2 = {
    (16, 3, 3, 3): (1, 1.0, 1.0, 1.0, 1.0),
    (32, 16, 1, 1): (1, 1.0, 0.85184, 1.0, 0.42508),
    (32, 16, 3, 3): (1, 0.88603, 0.85184, 0.42115, 0.42508),
    (32, 32, 3, 3): (5, 0.57428, 0.56789, 0.27297, 0.28339),
    (64, 32, 1, 1): (1, 1.0, 0.42592, 1.0, 0.21254),
    (64, 32, 3, 3): (1, 0.4184, 0.42592, 0.19888, 0.21254),
    (64, 64, 3, 3): (5, 0.27483, 0.28395, 0.13063, 0.14169),
    (128, 64, 1, 1): (1, 1.0, 0.21296, 0.85107, 0.10627),
    (128, 64, 3, 3): (1, 0.20305, 0.21296, 0.09651, 0.10627),
    (128, 128, 3, 3): (5, 0.13434, 0.14197, 0.06385, 0.07085),
    (10, 128): (1, 1.0, 0.97961, 1.0, 0.48884),
}


def layer(name: str, shape: tuple[int, ...]) -> Layer:
    kind = "linear" if len(shape) == 2 else "pointwise" if shape[2:] == (1, 1) else "window"
    return Layer(name=name, key=f"{name}.weight", kind=kind, shape=shape)


@pytest.mark.parametrize("kernel", [True, False], ids=["erk", "er"])
@pytest.mark.parametrize("sparsity", [0.8, 0.9])
@pytest.mark.parametrize("network", [RESNET50, WRN_22_2], ids=["resnet50", "wrn-22-2"])
def test_densities_are_the_published_solvers(
    network: dict[tuple[int, ...], tuple[float, ...]], sparsity: float, kernel: bool
) -> None:
    layers = [layer(f"{shape}{n}", shape) for shape, row in network.items() for n in range(int(row[0]))]
    sizes = {x.key: x.weights for x in layers}
    assert sum(sizes.values()) == {21: 25502912, 11: 1076912}[len(network)]
    found = erdos_renyi_densities(layers, sizes, sparsity, kernel=kernel)
    dead = erdos_renyi(layers, sizes, sparsity, kernel=kernel)
    assert sum(dead.values()) == math.ceil(sum(sizes.values()) * sparsity)
    for x in layers:
        expected = network[x.shape][1 + 2 * (sparsity == 0.9) + (not kernel)]
        assert found[x.key] == pytest.approx(expected, rel=2e-4)
        assert 1 - dead[x.key] / x.weights == pytest.approx(found[x.key], abs=1.01 / x.weights)


shapes = st.lists(st.tuples(*[st.integers(1, 6)] * 2, *[st.integers(1, 3)] * 2), min_size=1, max_size=5)


@given(shapes=shapes, sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.77, 0.9, 0.99, 0.999]), kernel=st.booleans())
def test_totals_are_exact_and_no_layer_is_emptied(shapes: list[tuple[int, ...]], sparsity: float, kernel: bool) -> None:
    layers = [layer(str(n), shape) for n, shape in enumerate(shapes)]
    sizes = {x.key: x.weights for x in layers}
    dead = erdos_renyi(layers, sizes, sparsity, kernel=kernel)
    assert all(0 <= dead[key] < size for key, size in sizes.items())
    densities = erdos_renyi_densities(layers, sizes, sparsity, kernel=kernel)
    assert all(0 <= density <= 1 for density in densities.values())
    most = sum(size - 1 for key, size in sizes.items() if densities[key] < 1)
    assert sum(dead.values()) == min(pruned(sum(sizes.values()), sparsity), most)
    assert uniform(sizes, sparsity) == {key: min(pruned(n, sparsity), n - 1) for key, n in sizes.items()}


scores = st.one_of(
    st.sampled_from([0.0, 5e-324, 1e-45, 1.4e-44, 1.17e-38, 1e-12, 0.5, 1.0, 3.4e38]),  # denormals among them
    st.floats(0, 4, width=32),
    st.integers(0, 3).map(float),
)


@st.composite
def vectors(draw: st.DrawFn) -> list[Tensor]:
    """Scores of some layers: many ties, float32 and float64 side by side."""
    kinds = draw(st.sampled_from([(torch.float32,), (torch.float64,), (torch.float32, torch.float64)]))
    lengths = st.integers(1, 30)
    return [
        torch.tensor(
            draw(st.lists(scores, min_size=(n := draw(lengths)), max_size=n)), dtype=draw(st.sampled_from(kinds))
        )
        for _ in range(draw(st.integers(1, 4)))
    ]


@given(values=vectors(), part=st.floats(0, 1))
def test_the_kth_of_all_is_that_of_a_full_sort(values: list[Tensor], part: float) -> None:
    ordered = sorted(x for v in values for x in v.tolist())
    k = 1 + round(part * (len(ordered) - 1))
    assert float(kth_of_all(values, k)) == ordered[k - 1]


@given(values=vectors(), part=st.floats(0, 1.2), data=st.data())
def test_one_competition_takes_the_first_of_a_sorted_list(
    values: list[Tensor], part: float, data: st.DataObject
) -> None:
    """Of equals the earlier layer's; of each layer the strongest live unit stays, whatever is asked."""
    layers, rows = {}, []
    for n, v in enumerate(values):
        bits = data.draw(st.integers(1, 2 ** len(v) - 1))
        alive = torch.tensor([bool(bits >> i & 1) for i in range(len(v))])
        x = Layer(name=str(n), key=str(n), kind="linear", shape=(1, len(v)))
        layers[x.key] = LayerUnits(x, Unit(), v[None], alive[None])
        live = [(s, n, i) for i, s in enumerate(v.tolist()) if alive[i]]
        best = max(live, key=lambda row: (row[0], row[2]))
        rows += [row for row in live if row is not best]
    count = round(part * (len(rows) + 1))
    expected = dict.fromkeys(layers, 0)
    for _, n, _ in sorted(rows)[:count]:
        expected[str(n)] += 1
    assert globally(layers, {str(n): v for n, v in enumerate(values)}, count) == expected


def test_a_cutoff_is_not_rounded_to_the_type_of_another_layer() -> None:
    """0.1 in float32 is a hair above 0.1 in float64."""
    values = {"a": torch.tensor([0.1, 0.5]), "b": torch.tensor([0.1, 0.7], dtype=torch.float64)}
    layers = {
        key: LayerUnits(layer(key, (1, 2)), Unit(), v[None], torch.ones(1, 2, dtype=torch.bool))
        for key, v in values.items()
    }
    assert globally(layers, values, 1) == {"a": 0, "b": 1}


@given(
    seed=st.integers(0, 2**31),
    kinds=st.sampled_from([1, 2, 50, 1 << 20]),
    live=st.sampled_from([1.0, 0.5, 0.01]),
    part=st.one_of(st.floats(0, 1.0), st.floats(0, 0.01)),
    sign=st.sampled_from([1, -1]),
)
@settings(max_examples=15)
def test_the_smallest_of_many_are_the_first_of_a_sorted_list(
    seed: int, kinds: int, live: float, part: float, sign: int
) -> None:
    """Of so many that a sample tells where they lie."""
    draws = np.random.default_rng(seed)
    score_N, among_N = draws.integers(0, kinds, 20_000) / np.float32(8), draws.random(20_000) < live
    places = np.flatnonzero(among_N)
    count = round(part * len(places))
    expected = np.zeros(20_000, bool)
    expected[places[np.argsort(sign * score_N[places], kind="stable")[:count]]] = True
    find = smallest if sign == 1 else largest
    found = find(torch.from_numpy(score_N.astype(np.float32)), torch.from_numpy(among_N), count)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("count", [3, 40])
def test_each_candidate_is_as_likely_as_another(count: int) -> None:
    """Few of many candidates, which are met by chance, and many of them, which are listed."""
    among = torch.arange(100) % 3 > 0
    era, hits = Era(first_step=0, last_step=1), torch.zeros(100)
    for step in range(800):
        chosen = Moment(step=step, era=era, target=0.5, seed=1).choose("a", among, count)
        assert int(chosen.sum()) == count and not (chosen & ~among).any()
        hits += chosen
    expected = 800 * count / int(among.sum())
    chi = float(((hits[among] - expected) ** 2 / expected).sum()) / (1 - count / int(among.sum()))
    assert chi < 66 + 4 * math.sqrt(2 * 66)
