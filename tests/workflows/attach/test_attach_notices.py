"""Things that go wrong after `attach` without an error of torch, each noticed once in one line or counted rightly."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook

import starfire_cli as starfire
from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.workflows.attach.hooks import _WATCHING
from tests.helpers.pruner_training import batches
from tests.workflows.attach.loops import PLAIN, STEPS, assert_equal, made, state_of, trained

ERA = {"method": "gmp", "target": 0.5, "era_steps": (2, 10)}


def test_a_dense_run_goes_through_the_same_loop_and_file(tmp_path):
    model, optimizer = made()
    with pytest.warns(UserWarning, match="target=0.8: method='dense' prunes nothing"):
        pruner = starfire.attach(model, optimizer, method="dense", target=0.8, era=(0.2, 0.6), total_steps=STEPS)
    trained(model, optimizer)
    plain = made()
    trained(*plain)
    assert_equal(state_of(model), state_of(plain[0]))
    assert (pruner.step, pruner.sparsity, pruner.planned) == (STEPS, 0.0, 0.0)
    assert "nothing is to be pruned" in str(pruner.summary())
    path = starfire.save(tmp_path / "dense.pt", pruner)
    assert starfire.inspect(path).zeros == 0
    state = pruner.state_dict()
    model, optimizer = made()
    again = starfire.attach(model, optimizer, method="dense")
    again.load_state_dict(state)
    assert again.step == STEPS


def test_a_network_without_layers_is_refused_unless_dense_was_asked_for():
    model = nn.Sequential(nn.BatchNorm2d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(StarfireError, match="nothing of this model would be pruned"):
        starfire.attach(model, optimizer, total_steps=10)


def test_more_than_the_target_is_said_at_once_and_planned():
    with pytest.warns(UserWarning, match=r"target=0\.7 comes to 7\d\.\d\d% with method='window'.*\(7/9 of a window\)"):
        pruner = starfire.attach(*made(), method="window", target=0.7, total_steps=STEPS)
    first = pruner.summary()
    assert [layer.planned for layer in first.layers[:2]] == [pytest.approx(7 / 9)] * 2
    assert f"all {'':10}" in str(first) and str(first).splitlines()[1].endswith("in the end")
    assert f"target=0.7, which comes to {pruner.planned:.2%}" in repr(pruner)
    assert f"comes to {pruner.planned:.2%}" in str(pruner.summary())


@pytest.mark.filterwarnings("ignore:target=.* comes to")
@pytest.mark.parametrize("method", ["window", "ck", "intra", "gmp", "rigl:every=2", "set:every=2", "srigl:every=2"])
def test_it_comes_to_what_was_planned(method):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, method=method, target=0.6, era_steps=(1, 10))
    trained(model, optimizer)
    assert pruner.planned == pytest.approx(pruner.sparsity, abs=1e-9)
    found = pruner.summary()
    assert "in the end" not in str(found)
    for layer in found.layers:
        assert layer.planned is None or layer.planned == pytest.approx(layer.sparsity)


def test_what_nobody_asked_for_is_not_warned_of():
    """The default target is no promise of the user's."""
    pruner = starfire.attach(*made(), total_steps=STEPS)
    assert pruner.planned > 0.63


def test_masks_that_came_in_count_in_the_plan():
    model, optimizer = made()
    mask = torch.ones(9, 12, dtype=torch.bool)
    mask[:8] = False
    pruner = starfire.attach(model, optimizer, method="dense", target=0, masks={"10.weight": mask})
    assert pruner.planned == pruner.sparsity == pytest.approx(8 / 9)


def test_a_layer_without_a_live_weight_is_said(tmp_path):
    """Where masks bring it along, and in the file."""
    model, optimizer = made()
    with pytest.warns(UserWarning, match="^masks: 10 has no live weight, so that only a bias comes out$"):
        pruner = starfire.attach(model, optimizer, method="dense", masks={"10.weight": torch.zeros(9, 12).bool()})
    with pytest.warns(UserWarning, match="^10 has no live weight"):
        starfire.save(tmp_path / "model.pt", pruner)


def test_steps_without_gradients_are_not_counted():
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, **ERA)
    for _ in range(5):  # as before a learning-rate schedule, or while nothing is trained
        optimizer.zero_grad()
        optimizer.step()
    assert pruner.step == 0
    trained(model, optimizer)
    assert pruner.step == STEPS
    other, optimizer = made()
    starfire.attach(other, optimizer, **ERA)
    trained(other, optimizer)
    assert_equal(state_of(model), state_of(other))


def test_two_optimizers_of_which_one_has_no_gradients_make_a_step():
    model, _ = made()
    parts = [torch.optim.SGD(part.parameters(), **PLAIN) for part in (model[:6], model[6:])]
    pruner = starfire.attach(model, parts, **ERA)
    for images, labels in batches(4):
        model.zero_grad()
        features = model[:6](images).detach()  # only the head learns
        nn.functional.cross_entropy(model[6:](features), labels).backward()
        for optimizer in parts:
            optimizer.step()
    assert pruner.step == 4
    for optimizer in parts:
        model.zero_grad()
        optimizer.step()
    assert pruner.step == 4


def test_more_steps_than_were_told_are_said_once():
    model, optimizer = made()
    starfire.attach(model, optimizer, method="gmp", target=0.5, total_steps=STEPS - 3)
    trained(model, optimizer, STEPS - 3)
    with pytest.warns(UserWarning, match=r"this is step 10, and starfire\.attach was told total_steps=9") as said:
        trained(model, optimizer, 3)
    assert len(said) == 1


def test_an_optimizer_that_was_not_given_is_said_once():
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, **ERA)
    new = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.warns(UserWarning, match=r"AdamW steps 0\.weight, 3\.weight, .* is not the optimizer that") as said:
        trained(model, new, 4)
    assert len(said) == 1 and pruner.step == 0


@pytest.mark.parametrize("let_go", ["detached", "forgotten"])
def test_other_optimizers_are_none_of_its_business(let_go):
    """Those of other networks, those within its own step, and all of them once it is gone."""
    gc.collect()
    before = len(_WATCHING)
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, **ERA)
    assert len(_WATCHING) == before + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(*made(seed=4), 2)
        if let_go == "detached":
            pruner.detach()
            trained(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    if let_go == "forgotten":
        del model, optimizer, pruner
        gc.collect()
    assert len(_WATCHING) == before


def test_a_pruner_may_be_freed_while_another_optimizer_steps():
    """As the garbage collector does at any time; torch then iterates over the hooks of all optimizers."""
    left = [starfire.attach(*made(), **ERA)]
    optimizer = made()[1]

    def forget(*_):
        left.clear()
        gc.collect()

    handles = [register_optimizer_step_pre_hook(hook) for hook in (forget, lambda *_: None)]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    starfire.attach(*made(), **ERA)
    starfire.attach(*made(), **ERA)
    ours = [hook for hook in _global_optimizer_pre_hooks.values() if "starfire" in getattr(hook, "__module__", "")]
    assert len(ours) == 1


class Wrapping(torch.optim.Optimizer):
    """Steps another optimizer of the same parameters, as sharpness-aware minimisation does."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, **PLAIN)

    def step(self, closure=None):
        self.base.step(closure)


def test_an_optimizer_within_another_is_its_own():
    model, _ = made()
    optimizer = Wrapping(model.parameters())
    pruner = starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer)
    assert pruner.step == STEPS
    pruner.verify()


class TwoSteps(Wrapping):
    """Steps the other one by a method of its own, as published code of SAM does."""

    def second_step(self):
        self.base.step()


def test_an_optimizer_that_is_stepped_behind_another_is_named():
    model, _ = made()
    optimizer = TwoSteps(model.parameters())
    starfire.attach(model, optimizer, **ERA)
    model(batches(1)[0][0]).sum().backward()
    with pytest.warns(UserWarning, match=r"give attach this one, TwoSteps\.base, whose step is the one that counts"):
        optimizer.second_step()


def test_weights_of_an_earlier_step_are_not_saved_with_later_masks(tmp_path):
    """As where the best weights of all epochs are loaded in the end."""
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer, 4)
    best, masks = state_of(model), pruner.state_dict()
    trained(model, optimizer, start=4)
    model.load_state_dict(best)
    with pytest.raises(Mismatch, match="are not zero, as after load_state_dict of an earlier step; weights of step 10"):
        starfire.save(tmp_path / "best.pt", pruner)
    pruner.load_state_dict(masks)
    with pytest.warns(UserWarning, match="this is step 4 and the era is 2:10"):
        assert_equal(starfire.load(starfire.save(tmp_path / "best.pt", pruner)), best)


def test_layers_that_are_left_out_for_one_reason_share_a_line():
    pruner = starfire.attach(*made(), **ERA, keep_dense=["[0-9]"])
    assert "left out: 0, 3, 5 and 1 more: keep_dense=['[0-9]']" in str(pruner.summary()).splitlines()


def test_a_layer_that_any_target_empties_is_named():
    """One output channel: of each input there is one kernel."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        StarfireError, match=r"leaves nothing of 1, nor does a lower one; keep_dense=\('1',\) exempts it"
    ):
        starfire.attach(model, optimizer, method="ck", target=0.5, total_steps=10)


def test_a_layer_that_is_replaced_is_noticed_wherever_it_stands():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3)), nn.Flatten())
            self.head = nn.LazyLinear(4)

        def forward(self, x):
            return self.head(self.body(self.stem(x)))

    def ready():
        model = Nested()
        model(torch.zeros(1, 3, 7, 7))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, starfire.attach(model, optimizer, **ERA)

    for change, name in (
        (lambda m: setattr(m, "head", nn.Linear(72, 4)), "head"),
        (lambda m: m.body.__setitem__(0, nn.Sequential(nn.Conv2d(8, 8, 3))), "body.0"),
        (lambda m: setattr(m.body[0][0], "weight", nn.Parameter(torch.ones(8, 8, 3, 3))), "body.0.0.weight"),
        (lambda m: nn.utils.parametrizations.weight_norm(m.head), "head"),
        (lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True), "stem.weight"),
    ):
        model, optimizer, pruner = ready()
        change(model)
        model(torch.rand(2, 3, 7, 7)).sum().backward()
        with pytest.raises(StarfireError, match=rf"^{name}(\.weight)? was replaced after starfire\.attach"):
            optimizer.step()
        pruner.detach()
    model, optimizer, pruner = ready()
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model(torch.rand(2, 3, 7, 7)).sum().backward()
    optimizer.step()
    assert pruner.step == 1


class Held:
    """A wrapper as fastai's, which is no optimizer and holds one."""

    def __init__(self, optimizer):
        self.opt = optimizer


def test_the_optimizer_in_a_wrapper_is_found():
    model, optimizer = made()
    pruner = starfire.attach(model, Held(optimizer), **ERA)
    trained(model, optimizer)
    assert pruner.step == STEPS


def test_zeros_of_a_pruned_model_that_are_not_called_dead_are_said():
    """Unless masks come with it, with `attach` or afterwards."""
    model, optimizer = made()
    first = starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer)
    weights, state = state_of(model), first.state_dict()
    for way in ("masks", "state", "nothing"):
        model, optimizer = made()
        model.load_state_dict(weights)
        if way == "masks":
            starfire.attach(model, optimizer, method="gmp", target=0.5, total_steps=4, masks=first.masks)
            trained(model, optimizer, 2)
        elif way == "state":
            starfire.attach(model, optimizer, **ERA).load_state_dict(state)
            trained(model, optimizer, 2)
        else:
            starfire.attach(model, optimizer, **ERA)
            with pytest.warns(UserWarning, match=r"50\.\d+% of the weights of .* are zero and count as alive") as said:
                trained(model, optimizer, 2)
            assert len(said) == 1


def test_layers_that_are_initialised_with_zeros_are_no_pruned_ones():
    model, optimizer = made()
    nn.init.zeros_(model[12].weight)
    starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer, 2)
