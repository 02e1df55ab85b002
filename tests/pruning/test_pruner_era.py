"""Masks over a whole era: their counts, when they are evaluated, and how a resumed run goes on."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim

from starfire_cli.errors import StarfireError
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Goal, Pruner, layers_of_model, select
from starfire_cli.pruning.schedule import RAMPS, Era
from tests.helpers.paper_loops import decided_count, exact
from tests.helpers.pruner_training import FIRST, LAST, STEPS, Training, batches, make_pruner, network

EVERY_PAIR = [
    *((c, "fine", "linear") for c in CONV_METHODS.names()),
    *(("ck", f, "linear") for f in LINEAR_METHODS.names()),
    *(("intra", "two-tier", ramp) for ramp in RAMPS),
]


def sgd(parameters: object) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("conv", "fc", "ramp"), EVERY_PAIR)
def test_passing_over_unchanged_budgets_changes_nothing(conv: str, fc: str, ramp: str) -> None:
    """Against a pruner that forgets, before every step, that it has been asked before."""
    runs = []
    for forgetful in (False, True):
        training = Training.start(sgd, conv=conv, fc=fc)
        training.check = False
        training.pruner.era = Era(first_step=FIRST, last_step=LAST, ramp=ramp)
        trail = []
        for batch in batches(STEPS):
            if forgetful:
                training.pruner._masks.forget()
            training.run([batch])
            trail.append(training.pruner.digest())
        runs.append((trail, [w.detach().clone() for w in training.model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


def moving_masks(conv: str, target: float, shape: tuple[int, int, int, int], steps: int, seed: int) -> list[int]:
    """The zeros of one layer along an era, its weights moving a lot at every step."""
    model = nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)
    pruner = make_pruner(model, conv, target=target, first_step=0, last_step=steps)
    generator = torch.Generator().manual_seed(seed)
    along = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            noise = torch.randn(shape, generator=generator)
            model.weight.copy_((model.weight * 0.5 + noise) * pruner.masks.get("weight", torch.ones(())))
        pruner.after_step(step)
        along.append(pruner.zeros.get("weight", 0))
    return along


@given(
    target=st.sampled_from([0.1, 0.3, 0.4, 0.5, 0.6, 0.75, 0.8]),
    share=st.sampled_from(["0", "0.3", "0.5", "0.7", "1"]),
    cap=st.sampled_from(["", ",max_nonzero=3"]),
    K=st.integers(2, 24),
    seed=st.integers(0, 999),
)
def test_intra_and_inter_end_at_the_same_count_and_never_above(
    target: float, share: str, cap: str, K: int, seed: int
) -> None:
    shape = (K, 2, 3, 3)
    layer = layers_of_model(nn.Conv2d(2, K, 3))[0][0]
    final = CONV_METHODS.build(f"intra:share={share}{cap}").budget(layer, Goal(target=target))
    assert final is not None
    in_window, kernels = (cut.count for cut in final)
    expected = 2 * (9 * kernels + (K - kernels) * in_window)
    assert expected / layer.weights >= target - 1e-9
    for spec in ("intra:", "inter:", "inter:order=window-ck,", "inter:split=0.2,"):
        along = moving_masks(f"{spec}share={share}{cap}", target, shape, steps=25, seed=seed)
        assert along == sorted(along)
        assert along[-1] == expected


@pytest.mark.parametrize("conv", ["window", "ck"])
@pytest.mark.parametrize("target", [0.3, 0.6])
def test_the_count_follows_the_threshold_step_by_step(conv: str, target: float) -> None:
    along = moving_masks(conv, target, (20, 3, 3, 3), steps=30, seed=1)
    n, unit = (9, 60) if conv == "window" else (20, 27)
    assert along == [unit * decided_count(n, exact(str(target)) * exact(f"{step}/30")) for step in range(1, 31)]  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [1, 3, 100])
def test_nothing_before_the_era_nothing_after_it_and_the_target_at_its_end(every: int) -> None:
    training = Training.start(sgd, conv="window", target=0.5)
    training.pruner.era = Era(first_step=FIRST, last_step=LAST, mask_every=every)
    digests = []
    for batch in batches(STEPS):
        training.run([batch])
        digests.append(training.pruner.digest())
    assert len(set(digests[:FIRST])) == 1
    assert len(set(digests[LAST - 1 :])) == 1
    assert digests[LAST - 1] != digests[LAST - 2] or every == 1
    assert training.pruner.zeros["0.weight"] == 8 * 3 * 5
    assert training.pruner.threshold(FIRST) == 0
    assert training.pruner.threshold(LAST) == 0.5
    assert training.pruner.threshold((FIRST + LAST) // 2) == pytest.approx(0.25)


@pytest.mark.parametrize("at", [FIRST - 1, 13, LAST, STEPS - 2])
@pytest.mark.parametrize("conv", ["window", "intra", "inter"])
def test_a_resumed_training_is_the_training(conv: str, at: int) -> None:
    data = batches(STEPS)
    whole = Training.start(sgd, conv=conv, fc="two-tier")
    whole.run(data)

    half = Training.start(sgd, conv=conv, fc="two-tier")
    half.run(data[:at])
    saved = copy.deepcopy((half.model.state_dict(), half.optimizer.state_dict(), half.pruner.masks))

    model = network(seed=77)
    model.load_state_dict(saved[0])
    optimizer = sgd(model.parameters())
    optimizer.load_state_dict(saved[1])
    pruner = make_pruner(model, conv, "two-tier")
    pruner.load(saved[2])
    pruner.attach(optimizer)
    resumed = Training(model=model, pruner=pruner, optimizer=optimizer, step=at, before=dict(saved[2]))
    resumed.run(data[at:])

    assert resumed.pruner.digest() == whole.pruner.digest()
    assert resumed.pruner.zeros == whole.pruner.zeros
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in whole.optimizer.state[a].items():
            assert torch.equal(value, resumed.optimizer.state[b][name])


def test_loaded_masks_are_enforced_on_weights_state_and_average() -> None:
    training = Training.start(lambda p: optim.Adam(p, lr=0.01), ema=True)
    training.run(batches(FIRST))
    masks = {k: torch.rand(m.shape) < 0.5 for k, m in training.pruner.masks.items()}
    training.pruner.load(masks)
    training.before = {}
    training.assert_dead_is_dead()
    assert all(torch.equal(training.pruner.masks[k], m) for k, m in masks.items())
    training.run(batches(3))


def test_masks_that_came_with_the_model_stay_whatever_the_method() -> None:
    model = network()
    masks = {"0.weight": torch.rand(8, 3, 3, 3) < 0.5}
    pruner = Pruner(
        model,
        layers_of_model(model)[0],
        conv=CONV_METHODS.build("dense"),
        linear=LINEAR_METHODS.build("dense"),
        target=0.9,
        era=Era(first_step=0, last_step=1),
        masks=masks,
    )
    assert list(pruner.masks) == ["0.weight"]
    pruner.refresh(1.0)
    assert torch.equal(pruner.masks["0.weight"], masks["0.weight"])
    assert torch.equal(model.get_parameter("0.weight") == 0, ~masks["0.weight"])


def test_a_mask_of_another_shape_is_refused() -> None:
    pruner = make_pruner(network())
    with pytest.raises(StarfireError, match=r"0\.weight has shape \(8, 3, 1, 1\), its weight \(8, 3, 3, 3\)"):
        pruner.load({"0.weight": torch.ones(8, 3, 1, 1, dtype=torch.bool)})


def test_plan_says_what_refresh_does_and_touches_nothing() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruner = make_pruner(model, "intra", "two-tier", 0.7)
    plan = {layer.key: layer.weights - left for layer, left, _ in pruner.plan()}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(pruner.zeros.values())
    pruner.refresh(1.0)
    assert pruner.zeros == plan


def test_layers_left_out_by_globs_stay_dense() -> None:
    model = network()
    layers, _ = select(layers_of_model(model)[0], keep_dense=["0", "1*"])
    pruner = Pruner(
        model,
        layers,
        conv=CONV_METHODS.build("ck"),
        linear=LINEAR_METHODS.build("fine"),
        target=0.5,
        era=Era(first_step=0, last_step=1),
    )
    pruner.refresh(1.0)
    assert {k for k, z in pruner.zeros.items() if z} == {"3.weight", "6.weight"}
    assert [layer.name for layer in pruner.left_alone] == ["5"]  # depthwise
    assert all(bool(model.get_parameter(k).all()) for k in ("0.weight", "5.weight", "10.weight", "12.weight"))


def test_two_layers_that_share_a_weight_are_pruned_as_one() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    pruner = make_pruner(model, target=0.5)
    assert list(pruner.masks) == ["0.weight"]
    pruner.refresh(1.0)
    assert int(model.state_dict()["2.weight"].count_nonzero()) == 18


def test_memory_formats_give_the_same_training() -> None:
    runs = []
    for channels_last in (False, True):
        training = Training.start(sgd, conv="intra", channels_last=channels_last)
        weight = training.model.get_parameter("0.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert training.pruner.masks["0.weight"].stride() == weight.stride()
        training.pruner.refresh(0.7)
        runs.append(training.pruner.digest())
    assert runs[0] == runs[1]


def test_after_the_era_the_pruner_holds_no_optimizer_state() -> None:
    """It would keep the dense state alive that `--compact-state` replaces."""
    training = Training.start(sgd, conv="ck", fc="fine")
    training.run(batches(STEPS))
    states = [weakref.ref(state["momentum_buffer"]) for state in training.optimizer.state.values()]
    training.optimizer.state.clear()
    gc.collect()
    assert states and not any(state() is not None for state in states)
