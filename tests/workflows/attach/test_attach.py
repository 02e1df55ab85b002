"""Pruners in loops of all kinds: each gives what the plain loop gives, and dead weights are zero."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import starfire_cli as starfire
from starfire_cli.errors import StarfireError
from starfire_cli.pruning import LINEAR_METHODS, TRAINING_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era
from tests.helpers.pruner_training import batches
from tests.workflows.attach.loops import PLAIN, STEPS, assert_equal, made, state_of, trained

pytestmark = pytest.mark.filterwarnings("ignore:target=.* (meets none|comes to)")

METHODS = ["window", "rigl:every=3", "snfs:every=2", "ssl"]
ERA = {"target": 0.5, "era_steps": (2, 10)}


def reference(method: str) -> dict[str, torch.Tensor]:
    """The pruner's own three calls (docs/architecture.md)."""
    model, optimizer = made()
    conv = TRAINING_METHODS.build(method)
    linear = conv if hasattr(conv, "axes") else LINEAR_METHODS.build("fine")
    era = Era(first_step=2, last_step=10)
    pruner = Pruner(model, layers_of_model(model)[0], conv=conv, linear=linear, target=0.5, era=era)
    pruner.attach(optimizer)
    pruner.begin()
    for step, (images, labels) in enumerate(batches(STEPS), 1):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        if pruner.after_backward():
            optimizer.step()
        pruner.after_step(step)
    return state_of(model)


def by_closure(model, optimizer, pruner):
    for images, labels in batches(STEPS):

        def closure(images=images, labels=labels):
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            return loss

        assert optimizer.step(closure) > 0


def by_gradients_that_stay(model, optimizer, pruner):
    for images, labels in batches(STEPS):
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def by_explicit_calls(model, optimizer, pruner):
    for images, labels in batches(STEPS):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        pruner.after_backward()
        optimizer.step()
        assert pruner.after_step() is False  # with hooks it has been done


def by_compiled_model(model, optimizer, pruner):
    trained(model, optimizer, forward=torch.compile(model, backend="eager"))


def by_scaler(model, optimizer, pruner):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for images, labels in batches(STEPS):
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(images), labels)).backward()
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "loop",
    [None, by_closure, by_gradients_that_stay, by_explicit_calls, by_scaler],
    ids=lambda f: getattr(f, "__name__", "plain"),
)
def test_every_loop_gives_what_the_three_calls_give(method, loop):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, method=method, **ERA)
    if loop is None:
        trained(model, optimizer)
    else:
        loop(model, optimizer, pruner)
    assert pruner.step == STEPS
    pruner.verify()
    assert_equal(state_of(model), reference(method))
    if method != "ssl":
        assert pruner.sparsity == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("method", ["window", "rigl:every=3"])
def test_explicit_calls_without_hooks(method):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, method=method, hooks=False, **ERA)
    for images, labels in batches(STEPS):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        if pruner.after_backward():
            optimizer.step()
        pruner.after_step()
    assert_equal(state_of(model), reference(method))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", ["window", "rigl:every=3", "snfs:every=2", "ssl"])
def test_a_step_that_the_scaler_skips_is_none(method, fused):
    """Batches of infinities between the others leave no trace, and loss scales of two change no bit."""
    results = []
    for overflows in (False, True):
        model, optimizer = made(**PLAIN, fused=fused)
        pruner = starfire.attach(model, optimizer, method=method, **ERA)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for number, (images, labels) in enumerate(batches(STEPS)):
            for poisoned in (True, False) if overflows and number % 3 == 1 else (False,):
                optimizer.zero_grad()
                before = copy.deepcopy([buffer.clone() for buffer in model.buffers()])
                loss = cross_entropy(model(images), labels)
                scaler.scale(loss * float("inf") if poisoned else loss).backward()
                if poisoned:
                    for buffer, value in zip(model.buffers(), before, strict=True):
                        buffer.copy_(value)
                scaler.step(optimizer)
                scaler.update()
        assert pruner.step == STEPS
        pruner.verify()
        results.append(state_of(model))
    assert_equal(*results)


def two(model) -> list[torch.optim.Optimizer]:
    parts = [model[:6].parameters(), model[6:].parameters()]
    return [torch.optim.SGD(part, **PLAIN) for part in parts]


@pytest.mark.parametrize("method", ["window", "gmp", "rigl:every=3"])
def test_two_optimizers_of_one_model(method):
    model, _ = made()
    optimizers = two(model)
    pruner = starfire.attach(model, optimizers, method=method, **ERA)
    for images, labels in batches(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert pruner.step == STEPS
    assert_equal(state_of(model), reference(method))


def test_an_optimizer_that_steps_more_often_sets_the_pace():
    model, _ = made()
    optimizers = two(model)
    pruner = starfire.attach(model, optimizers, **ERA)
    for number, (images, labels) in enumerate(batches(STEPS)):
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizers[0].step()
        if number % 4 == 3:
            optimizers[1].step()
    assert pruner.step == STEPS
    pruner.verify()
    assert pruner.sparsity >= 0.5


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
        (torch.optim.LBFGS, {"lr": 0.05, "max_iter": 3, "history_size": 4}),
        (torch.optim.Rprop, {"lr": 0.01}),
        (torch.optim.ASGD, {"lr": 0.01}),
    ],
)
def test_what_is_dead_stays_zero_under_any_optimizer(kind, options):
    model, optimizer = made(0, kind, **options)
    pruner = starfire.attach(model, optimizer, **ERA)
    if kind is torch.optim.LBFGS:
        by_closure(model, optimizer, pruner)
    else:
        trained(model, optimizer)
    assert pruner.step == STEPS
    pruner.verify()
    assert pruner.sparsity >= 0.5


def test_a_moving_average_is_zero_where_weights_are_dead(tmp_path):
    model, optimizer = made()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    pruner = starfire.attach(model, optimizer, ema=average, **ERA)
    for images, labels in batches(STEPS):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        average.update_parameters(model)
    for key, mask in pruner.masks.items():
        assert not average.module.state_dict()[key][~mask].any()
    path = starfire.save(tmp_path / "model.pt", pruner)
    assert_equal(starfire.load(path), state_of(average.module))
    assert_equal(starfire.load(path, weights="model"), state_of(model))


def test_clipping_sees_gradients_without_those_of_dead_weights():
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer)
    images, labels = batches(1)[0]
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    assert pruner.sparsity >= 0.5
    for key, mask in pruner.masks.items():
        assert not model.get_parameter(key).grad[~mask].any()


def test_a_memory_format_may_change_after_attaching():
    one, other = made(), made()
    starfire.attach(*one, **ERA)
    one[0].to(memory_format=torch.channels_last)
    other[0].to(memory_format=torch.channels_last)
    starfire.attach(*other, **ERA)
    for model, optimizer in (one, other):
        trained(model, optimizer)
    assert_equal(state_of(one[0]), state_of(other[0]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [1, 7])
def test_resumed_to_the_bit(tmp_path, method, stop):
    whole, optimizer = made()
    starfire.attach(whole, optimizer, method=method, **ERA)
    trained(whole, optimizer)
    first, optimizer = made()
    pruner = starfire.attach(first, optimizer, method=method, **ERA)
    trained(first, optimizer, stop)
    torch.save([first.state_dict(), optimizer.state_dict(), pruner.state_dict()], tmp_path / "mine.pt")
    second, optimizer = made(seed=5)
    pruner = starfire.attach(second, optimizer, method=method, **ERA)
    weights, moments, masks = torch.load(tmp_path / "mine.pt", weights_only=True)
    pruner.load_state_dict(masks)
    second.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    trained(second, optimizer, start=stop)
    assert pruner.step == STEPS
    assert_equal(state_of(second), state_of(whole))


@pytest.mark.parametrize("method", ["rigl:every=3", "window"])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_model_may_be_loaded_before_or_after_the_pruner(method, when):
    """What is sparse from the start prunes at once, and must not take weights that were loaded first."""
    first, optimizer = made()
    pruner = starfire.attach(first, optimizer, method=method, **ERA)
    trained(first, optimizer, 7)
    saved = copy.deepcopy([first.state_dict(), optimizer.state_dict(), pruner.state_dict()])
    trained(first, optimizer, start=7)
    second, optimizer = made(seed=5)
    if when == "before":
        second.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
    pruner = starfire.attach(second, optimizer, method=method, **ERA)
    if when == "between":
        second.load_state_dict(saved[0])
    pruner.load_state_dict(saved[2])
    if when == "after":
        second.load_state_dict(saved[0])
    if when != "before":
        optimizer.load_state_dict(saved[1])
    trained(second, optimizer, start=7)
    assert_equal(state_of(second), state_of(first))


def test_weights_that_are_loaded_into_a_sparse_start_are_pruned():
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, method="set:every=3", **ERA)
    model.load_state_dict(made(seed=5)[0].state_dict())
    trained(model, optimizer, 1)
    pruner.verify()


def test_detached_it_does_nothing_more_and_another_may_follow():
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer)
    pruner.detach()
    before, step = pruner.sparsity, pruner.step
    again = starfire.attach(model, optimizer, method="dense", target=0, masks=pruner.masks)
    trained(model, optimizer)
    assert (pruner.step, again.sparsity) == (step, before)
    again.verify()
    with pytest.raises(StarfireError, match="detached"):
        pruner.after_backward()


def test_what_every_command_needs_is_in_the_file(tmp_path):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, keep_dense=["0"], **ERA)
    trained(model, optimizer)
    path = starfire.save(tmp_path / "model.pt", pruner, model="own:net", num_classes=4, mean=(0.5,) * 3, std=(0.2,) * 3)
    from starfire_cli.formats.checkpoint.file import load

    found = load(path)
    assert found.meta.pruning.method == "window" and found.meta.pruning.era_steps == (2, 10)
    assert (found.meta.model.spec, found.meta.model.num_classes) == ("own:net", 4)
    assert found.meta.data.mean == (0.5, 0.5, 0.5)
    assert found.masks.keys() == pruner.masks.keys() and "0.weight" not in found.masks
    assert_equal(found.state, state_of(model))


def test_the_summary_counts_zeros():
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, keep_dense=["12"], **ERA)
    trained(model, optimizer, 6)
    summary = pruner.summary()
    for layer in summary.layers:
        assert layer.zeros == int((model.get_parameter(f"{layer.name}.weight") == 0).sum())
    assert ("12", "keep_dense=['12']") in summary.left_out
    assert summary.sparsity_prunable == pruner.sparsity > 0
    assert (
        f"{summary.sparsity_prunable:.2%}" in str(summary)
        and f"{summary.sparsity_prunable:.2%}" in summary._repr_html_()
    )
    assert "step 6, in the era 2:10" in str(summary)


def test_nothing_of_the_model_or_the_optimizer_is_replaced():
    model, optimizer = made()
    parameters, keys = list(model.parameters()), list(model.state_dict())
    starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    copy.deepcopy(model)
    copy.deepcopy(optimizer)


def test_a_model_that_nobody_needs_is_freed():
    """Also in a notebook, where the cell that attaches is run again."""
    model, optimizer = made()
    starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer, 3)
    left = weakref.ref(model), weakref.ref(optimizer)
    del model, optimizer
    gc.collect()
    assert [one() for one in left] == [None, None]


class Hookless(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})
        vars(self)["step"] = lambda closure=None: None


class FullyShardedDataParallel(nn.Sequential):
    """The name by which torch's own is known, without importing it."""


def frozen(model):
    return torch.optim.SGD(model[10:].parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"method": "windows"}, "unknown pruning method 'windows'.*Did you mean 'window'"),
        (None, {"target": 1.5}, r"target=1.5"),
        (None, {"era": (0.2, 0.5)}, "total_steps=... is missing, of which era="),
        (None, {"era": (30, 50), "total_steps": 100}, r"era=\(30, 50\) is in shares of the training"),
        (None, {"era_epochs": (1, 2)}, "needs steps_per_epoch"),
        (None, {"era_steps": (1, 20), "total_steps": 10}, "ends after step 20, and total_steps=10"),
        (None, {"era_steps": (5, 5)}, "era_steps"),
        (None, {"era": (0.1, 0.2), "era_steps": (1, 5)}, "give one"),
        (None, {"keep_dense": ["nothing*"], "total_steps": 10}, r"keep_dense='nothing\*' matches no prunable layer"),
        (None, {"keep_dense": "conv1", "total_steps": 10}, "a list of texts works"),
        (None, {"method": "snip", "total_steps": 10}, "loss="),
        (None, {"method": "prunetrain", "total_steps": 10}, "removes channels"),
        (None, {"method": "lottery", "total_steps": 10}, "rounds"),
        (None, {"method": "window", "target": 0.99, "total_steps": 10}, "target=0.99.*leaves nothing"),
        (None, {"method": "rigl", "ramp": "cubic", "total_steps": 10}, "ramp='cubic'"),
        (None, {"ema": 3, "total_steps": 10}, "ema is a int"),
        (None, {"masks": {"0.weight": torch.ones(3)}, "total_steps": 10}, "0.weight is no bool tensor of shape"),
        (lambda m: (m, Hookless(m.parameters())), {}, "calls no hooks; hooks=False"),
        (lambda m: (m, [1]), {}, "optimizer is a int"),
        (lambda m: (m, frozen(m)), {}, "does not hold 0.weight, 3.weight, 5.weight and 1 more"),
        (lambda m: (m, [frozen(m), torch.optim.SGD(m.parameters(), lr=0.1)]), {}, "held by two optimizers"),
        (lambda m: (3, frozen(m)), {}, "model is a int"),
        (lambda m: (m.to("meta"), frozen(m)), {}, "meta device"),
        (lambda m: (nn.Sequential(nn.LazyLinear(3)), frozen(m)), {}, "no shape yet"),
        (lambda m: (FullyShardedDataParallel(m), frozen(m)), {}, "FullyShardedDataParallel flattens weights"),
        (lambda m: (nn.BatchNorm2d(3), frozen(m)), {}, "nothing of this model would be pruned"),
    ],
)
def test_what_cannot_work_is_said_at_once(change, options, message):
    model, optimizer = made()
    before = state_of(model)
    given = (model, optimizer) if change is None else change(model)
    with pytest.raises(StarfireError, match=message) as caught:
        starfire.attach(*given, **({"total_steps": 100} | options if change else options))
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)
    if change is None:
        assert_equal(state_of(model), before)
        starfire.attach(model, optimizer, total_steps=10)  # nothing was left behind


def test_a_second_attach_is_refused():
    model, optimizer = made()
    starfire.attach(model, optimizer, **ERA)
    with pytest.raises(StarfireError, match="being pruned already"):
        starfire.attach(model, optimizer, **ERA)


def test_quantised_weights_are_refused():
    model, optimizer = made()
    model[10].weight = nn.Parameter(torch.zeros(9, 12, dtype=torch.int8), requires_grad=False)
    with pytest.raises(StarfireError, match=r"10.weight is quantised.*int8"):
        starfire.attach(model, optimizer, **ERA)


def test_a_state_of_another_pruner_is_refused_and_changes_nothing():
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, method="ck", **ERA)
    state = pruner.state_dict()
    other, optimizer = made()
    pruner = starfire.attach(other, optimizer, **ERA)
    with pytest.raises(StarfireError, match="method='ck', and this one has method='window'"):
        pruner.load_state_dict(state)
    with pytest.raises(StarfireError, match="no state of a pruner"):
        pruner.load_state_dict({"weight": torch.ones(1)})


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({"ramp": "cubic"}, {}, "with ramp='cubic', and this one has ramp='linear'$"),
        ({}, {"mask_every": 3}, "with mask_every=1, and this one has mask_every=3$"),
        ({}, {"seed": 7}, "with seed=0, and this one has seed=7$"),
        ({}, {"era_steps": (3, 9)}, r"with era_steps=\(2, 10\), and this one has era_steps=\(3, 9\)$"),
        ({"method": "gmp"}, {"method": "gmp:every=5", "target": 0.6}, "method='gmp', target=0.5, and .*target=0.6$"),
        ({}, {"keep_dense": ["0"]}, "of other layers: 0.weight differ"),
    ],
)
def test_all_that_differs_from_a_state_is_said(there, here, message):
    state = starfire.attach(*made(), **(ERA | there)).state_dict()
    with pytest.raises(StarfireError, match=message):
        starfire.attach(*made(), **(ERA | here)).load_state_dict(state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("core"), "this is no state of a pruner"),
        (lambda s: s.pop("step"), "this is no state of a pruner"),
        (lambda s: s["masks"]["0.weight"].update(bits=torch.zeros(3, dtype=torch.uint8)), "damaged: 0.weight: 3 bytes"),
        (lambda s: s["masks"]["0.weight"].pop("bits"), "damaged: 0.weight"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage, message):
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, **ERA)
    trained(model, optimizer, 6)
    state = pruner.state_dict()
    damage(state)
    before, weights = pruner.sparsity, state_of(model)
    with pytest.raises(StarfireError, match=message):
        pruner.load_state_dict(state)
    assert (pruner.sparsity, pruner.step) == (before, 6)
    assert_equal(state_of(model), weights)


def test_a_longer_training_goes_on_from_a_state_and_so_does_an_older_state():
    state = starfire.attach(*made(), **ERA).state_dict()
    for name in ("ramp", "mask_every", "seed"):
        del state[name]
    starfire.attach(*made(), **ERA, total_steps=500, kernels="torch").load_state_dict(state)


def test_a_model_that_moves_afterwards_is_noticed():
    model, optimizer = made()
    starfire.attach(model, optimizer, **ERA)
    model.to("meta")
    with pytest.raises(StarfireError, match=r"moved from cpu to meta after starfire\.attach"):
        optimizer.step()


def test_a_weight_that_is_replaced_afterwards_is_noticed():
    model, optimizer = made()
    starfire.attach(model, optimizer, **ERA)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.raises(StarfireError, match=r"0.weight was replaced after starfire\.attach"):
        optimizer.step()
