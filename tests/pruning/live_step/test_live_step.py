"""Steps of live weights: the bits of numpy and numba are one, and torch's own optimizers take the same steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.pruning.kernels import installed
from starfire_cli.pruning.live_step import LivePiece, new_state, rule_of, state_names, take_steps
from starfire_cli.pruning.live_step import piece as pieces

OPTIMIZERS = {
    "sgd": lambda w: torch.optim.SGD([w], lr=0.07),
    "momentum": lambda w: torch.optim.SGD([w], lr=0.07, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda w: torch.optim.SGD([w], lr=0.07, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda w: torch.optim.Adam([w], lr=0.003, betas=(0.8, 0.95), weight_decay=1e-2),
    "adamw": lambda w: torch.optim.AdamW([w], lr=0.003, weight_decay=0.1),
}
CPU = torch.device("cpu")


def stepped(name: str, size: int, seed: int, *, compiled: bool, packed: bool, steps: int = 4):
    """(weights, state tensors of live entries, places) after steps on random gradients."""
    draws = np.random.default_rng(seed)
    weight = draws.standard_normal(size).astype(np.float32)
    places = np.flatnonzero(draws.random(size) < 0.3).astype(np.int32)
    optimizer = OPTIMIZERS[name](torch.nn.Parameter(torch.zeros(1)))
    state = new_state(optimizer, len(places), CPU)
    names = state_names(optimizer)
    assert names is not None
    for _ in range(steps):
        gradient = (draws.standard_normal(size) * 10.0 ** draws.integers(-20, 3, size)).astype(np.float32)
        piece = LivePiece(
            places_L=places,
            weight_N=weight,
            gradient=gradient[places] if packed else gradient,
            state=tuple(state[key].numpy() for key in names),
            packed=packed,
        )
        take_steps([(piece, rule_of(optimizer, optimizer.param_groups[0], state))], compiled=compiled)
    return weight, [state[key].numpy() for key in names], places


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch_and_dead_weights_are_not_touched(name: str) -> None:
    size, seed = 1000, 3
    weight, state, places = stepped(name, size, seed, compiled=False, packed=False)
    draws = np.random.default_rng(seed)
    start = draws.standard_normal(size).astype(np.float32)
    draws.random(size)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy())[torch.from_numpy(places).long()])
    optimizer = OPTIMIZERS[name](parameter)
    for _ in range(4):
        gradient = (draws.standard_normal(size) * 10.0 ** draws.integers(-20, 3, size)).astype(np.float32)
        parameter.grad = torch.from_numpy(gradient[places])
        optimizer.step()
    torch.testing.assert_close(torch.from_numpy(weight[places]), parameter.detach(), rtol=1e-5, atol=1e-7)
    for mine, key in zip(state, state_names(optimizer) or (), strict=True):
        torch.testing.assert_close(torch.from_numpy(mine), optimizer.state[parameter][key], rtol=1e-5, atol=0)
    dead = np.setdiff1d(np.arange(size), places)
    assert np.array_equal(weight[dead].view(np.int32), start[dead].view(np.int32))


@pytest.mark.skipif(not installed("numba"), reason="no numba")
@pytest.mark.parametrize("name", OPTIMIZERS)
@given(size=st.integers(0, 700), seed=st.integers(0, 1000), packed=st.booleans())
def test_numba_gives_the_bits_of_numpy(name: str, size: int, seed: int, packed: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_PIECE", 64)  # several pieces, the last one short
        found = stepped(name, size, seed, compiled=True, packed=packed)
        expected = stepped(name, size, seed, compiled=False, packed=not packed)
    for mine, theirs in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert np.array_equal(mine.view(np.int32), theirs.view(np.int32))


def test_optimizers_with_other_settings_take_their_own_steps() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    assert state_names(torch.optim.RMSprop([weight])) is None
    assert state_names(torch.optim.Adam([weight], amsgrad=True)) is None
    assert state_names(torch.optim.SGD([weight], momentum=0.9, dampening=0.1)) is None
    assert state_names(torch.optim.SGD([weight])) == ()


@pytest.mark.skipif(not installed("numba"), reason="no numba")
def test_a_compilation_is_announced_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from starfire_cli.pruning.live_step import loops

    stepped("sgd", 100, 0, compiled=True, packed=False)
    assert loops.warmup_notice("sgd") is None
    monkeypatch.setattr(loops, "is_compiled", lambda _: False)
    assert "numba compiles the step of live weights" in (loops.warmup_notice("adam") or "")
