"""Least squares among live weights: each output for itself, against numpy's solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from starfire_cli.pruning.channels.selection.least_squares import fit


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_dead_weights_take_no_part(constant: bool, same: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 7, generator=generator) + 0.5, torch.randn(60, 5, generator=generator) + 2
    alive = torch.rand(5, 7, generator=generator) < 0.5
    alive[1] = False
    if same:
        alive[:] = alive[0]
    weights, constants = fit(x, y, constant=constant, alive_KU=alive)
    for k in range(5):
        live = alive[k].nonzero().squeeze(1)
        columns = x[:, live].double().numpy()
        if constant:
            columns = np.concatenate([columns, np.ones((60, 1))], axis=1)
        best = np.linalg.lstsq(columns, y[:, k].double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(weights[live, k].numpy(), best[: len(live)], atol=1e-9)
        assert not weights[~alive[k], k].any()
        assert float(constants[k]) == pytest.approx(best[-1] if constant else 0.0, abs=1e-9)
    everything, _ = fit(x, y, constant=constant, alive_KU=torch.ones(5, 7, dtype=torch.bool))
    assert torch.equal(everything, fit(x, y, constant=constant)[0])
