from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.pruning.stats import layer_stats, sparsity
from tests.helpers.methods_strategies import Case, conv_cases, linear_cases


@given(case=conv_cases())
def test_a_convolution_counted_in_loops(case: Case) -> None:
    stats, alive = layer_stats(case.layer, case.alive), case.alive.flatten(2).tolist()
    K, C, groups = len(alive), len(alive[0]), case.layer.groups
    kept = [[sum(alive[k][c]) for c in range(C)] for k in range(K)]
    per_group = K // groups
    assert stats.zeros == sum(case.layer.window - n for row in kept for n in row)
    assert stats.sparsity == pytest.approx(stats.zeros / case.layer.weights)
    assert stats.dead_kernels == sum(n == 0 for row in kept for n in row)
    assert stats.dead_outputs == sum(not any(row) for row in kept)
    assert stats.dead_inputs == sum(
        not any(kept[k][c] for k in range(g * per_group, (g + 1) * per_group)) for g in range(groups) for c in range(C)
    )
    if case.layer.kind == "window":
        assert list(stats.per_window) == [
            sum(n == i for row in kept for n in row) for i in range(case.layer.window + 1)
        ]
    else:
        assert stats.per_window == ()


@given(case=linear_cases())
def test_a_linear_layer_counted_in_loops(case: Case) -> None:
    stats, alive = layer_stats(case.layer, case.alive), case.alive.tolist()
    assert stats.zeros == sum(not a for row in alive for a in row)
    assert stats.dead_outputs == sum(not any(row) for row in alive)
    assert stats.dead_inputs == sum(not any(column) for column in zip(*alive, strict=True))
    assert (stats.dead_kernels, stats.per_window) == (0, ())


@given(case=conv_cases())
def test_strides_do_not_matter(case: Case) -> None:
    assert layer_stats(case.layer, case.alive.contiguous(memory_format=torch.channels_last)) == layer_stats(
        case.layer, case.alive
    )


@given(cases=st.lists(conv_cases(), min_size=1, max_size=3), more=st.integers(0, 100))
def test_sparsity_over_what_is_prunable_and_over_everything(cases: list[Case], more: int) -> None:
    zeros = {str(i): layer_stats(case.layer, case.alive).zeros for i, case in enumerate(cases)}
    prunable = sum(case.alive.numel() for case in cases)
    dead = prunable - sum(int(case.alive.sum()) for case in cases)
    of_prunable, of_all = sparsity([case.layer for case in cases], zeros, prunable + more)
    assert of_prunable == pytest.approx(dead / prunable)
    assert of_all == pytest.approx(dead / (prunable + more))


def test_a_model_without_prunable_layers_has_no_sparsity() -> None:
    assert sparsity([], {}, 0) == (0.0, 0.0)
