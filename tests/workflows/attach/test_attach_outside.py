"""Dead weights under what is not the plain loop: LBFGS within a step, several paces, states loaded in mid-run."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy

import starfire_cli as starfire
from starfire_cli.errors import Mismatch
from tests.helpers.pruner_training import batches
from tests.workflows.attach.loops import PLAIN, STEPS, assert_equal, made, state_of, trained

pytestmark = pytest.mark.filterwarnings("ignore:target=.* comes to")
ERA = {"method": "window", "target": 0.66, "era_steps": (2, 8)}


def dead_but_not_zero(model, pruner):
    return sum(int(model.get_parameter(key)[~mask].count_nonzero()) for key, mask in pruner.masks.items())


@pytest.mark.parametrize("search", ["strong_wolfe", None])
@pytest.mark.parametrize("hooks", [True, False])
def test_lbfgs_never_sees_a_dead_weight_alive(search, hooks):
    model, optimizer = made(0, torch.optim.LBFGS, lr=0.3, max_iter=5, line_search_fn=search)
    pruner = starfire.attach(model, optimizer, hooks=hooks, **ERA)
    seen = []
    for images, labels in batches(STEPS):

        def closure(images=images, labels=labels):
            seen.append(dead_but_not_zero(model, pruner))
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            if not hooks:
                pruner.after_backward()
            return loss.detach()

        optimizer.step(closure)
        if not hooks:
            pruner.after_step()
    assert len(seen) > 3 * STEPS and not any(seen)
    assert pruner.step == STEPS and pruner.sparsity > 0.6
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    for y, s, ro in zip(state["old_dirs"], state["old_stps"], state["ro"], strict=True):
        assert ro == pytest.approx(1 / float(y.dot(s)), rel=1e-4)


def test_lbfgs_keeps_its_memory_where_nothing_dies():
    one, other = (made(0, torch.optim.LBFGS, lr=0.3, max_iter=4) for _ in range(2))
    starfire.attach(*one, method="window", target=0.6, era_steps=(500, 600))
    for model, optimizer in (one, other):
        for images, labels in batches(6):

            def closure(model=model, optimizer=optimizer, images=images, labels=labels):
                optimizer.zero_grad()
                loss = cross_entropy(model(images), labels)
                loss.backward()
                return loss.detach()

            optimizer.step(closure)
    assert_equal(state_of(one[0]), state_of(other[0]))


def at_two_paces(model, optimizers, start, stop):
    for number, (images, labels) in list(enumerate(batches(STEPS)))[start:stop]:
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizers[0].step()
        if number % 2:
            optimizers[1].step()


@pytest.mark.parametrize("method", ["window", "gmp:every=1", "rigl:every=3"])
@pytest.mark.parametrize("stop", [3, 6, 7])
def test_resumed_to_the_bit_between_the_steps_of_two_optimizers(method, stop):
    def ready(seed):
        model, _ = made(seed)
        optimizers = [torch.optim.SGD(part.parameters(), **PLAIN) for part in (model[:6], model[6:])]
        return model, optimizers, starfire.attach(model, optimizers, **{**ERA, "method": method})

    def states(model, optimizers, pruner):
        return copy.deepcopy([part.state_dict() for part in (model, *optimizers, pruner)])

    whole, parts, pruner = ready(0)
    at_two_paces(whole, parts, 0, stop)
    saved = states(whole, parts, pruner)
    at_two_paces(whole, parts, stop, STEPS)
    never_saved, parts, _ = ready(0)
    at_two_paces(never_saved, parts, 0, STEPS)
    resumed, parts, again = ready(5)
    for part, state in zip((resumed, *parts, again), saved, strict=True):
        part.load_state_dict(state)
    at_two_paces(resumed, parts, stop, STEPS)
    assert again.step == pruner.step
    assert_equal(state_of(resumed), state_of(whole))
    if method != "rigl:every=3":
        assert_equal(state_of(resumed), state_of(never_saved))


@pytest.mark.parametrize("what", ["model", "submodule", "optimizer", "copy_"])
@pytest.mark.parametrize("when", [5, 10])
def test_dead_weights_that_are_loaded_over_are_zero_after_the_next_step(tmp_path, what, when):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer, 1)
    dense = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    trained(model, optimizer, when, start=1)
    before = pruner.sparsity
    if what == "model":
        model.load_state_dict(dense[0])
    elif what == "submodule":
        model[3].load_state_dict({k.removeprefix("3."): v for k, v in dense[0].items() if k.startswith("3.")})
    elif what == "optimizer":
        optimizer.load_state_dict(dense[1])
    else:
        with torch.no_grad():
            model[3].weight.copy_(dense[0]["3.weight"])
    shown = sum(int((w == 0).sum()) for k, w in model.state_dict().items() if k in pruner.masks)
    assert pruner.sparsity * sum(m.numel() for m in pruner.masks.values()) == pytest.approx(shown)
    assert sum(layer.zeros for layer in pruner.summary().layers) == shown
    if what != "optimizer":
        assert pruner.sparsity < before
        with pytest.raises(Mismatch):
            pruner.verify()
    with pytest.warns(UserWarning, match=r"\d+ dead weights of .*3\.weight.* set to zero again") as said:
        trained(model, optimizer, 1, start=when + 1)
    assert len(said) == 1 and pruner.sparsity >= before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(model, optimizer, STEPS, start=when + 2)
    pruner.verify()
    for key, mask in pruner.masks.items():
        assert not optimizer.state[model.get_parameter(key)]["momentum_buffer"][~mask].any()
    starfire.save(tmp_path / "model.pt", pruner)


def test_weights_that_are_put_aside_and_back_are_no_change():
    """As where a dense average is measured between two epochs."""
    one, other = made(), made()
    starfire.attach(*one, **ERA)
    starfire.attach(*other, **ERA)
    dense = state_of(made(seed=3)[0])
    trained(*one)
    for step in range(STEPS):
        trained(*other, 1, start=step)
        kept = state_of(other[0])
        other[0].load_state_dict(dense)
        other[0].load_state_dict(kept)
    assert_equal(state_of(one[0]), state_of(other[0]))
