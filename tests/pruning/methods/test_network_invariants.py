"""What holds of every method of the whole network, at every step; new members are covered as soon as they exist."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn, optim

from starfire_cli.errors import BadOption
from starfire_cli.pruning import METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era
from tests.helpers.hat_training import FIRST, LAST, STEPS, HatTraining, make_sgd

MEMBERS = [name for name in METHODS.taking("network").names() if METHODS.build(name).axes().rounds is None]
VARIANTS = [
    "gmp:pool=global,every=3",
    "gmp:pool=erk,initial=0.3,every=3",
    "deep-compression:s=1,every=3",
    "dsr:unit=kernel,threshold=0.05,every=2",
    "dsr:threshold=0.05,every=3",
    "granet:initial=0.5,every=3",
    "narang:q=0.2,every=3",
    "rigl:allocation=uniform,fraction=0.8,every=3",
    "set:by_sign=false,every=3",
    "snfs:allocation=er,every=3",
    "snip:pool=layer",
    "srigl:salient=0.9,every=3",
    "ac-dc:pool=layer,phases=3",
    "mix:unit=filter,reduce=norm,start=random,amount=swap,regrow=random,every=3",
    "mix:unit=column,reduce=sum,start=gradient,allocation=erk,amount=swap,regrow=gradient,keeps_value=true,every=2",
    "mix:unit=row,reduce=max,allocation=global,score=sensitivity,every=3",
    "mix:unit=channel,start=random,amount=adaptive,regrow=momentum,shared=momentum,again=false,every=3",
]
SPECS = [*MEMBERS, *VARIANTS]
# The number of live weights is the same at every step: of each layer, or of the network only.
STRICT, STRICT_IN_ALL = ("static", "set", "deepr", "rigl", "srigl", "snip"), ("dsr", "snfs")
KNOWN = (*STRICT, *STRICT_IN_ALL, "ac-dc", "deep-compression", "gmp", "granet", "mix", "narang")
RANDOM = ("static", "set", "deepr", "rigl", "srigl", "dsr", "snfs")


OPTIMIZERS: tuple[Callable[[Iterator[nn.Parameter]], optim.Optimizer], ...] = (
    make_sgd,
    partial(optim.Adam, lr=0.05),
    partial(optim.AdamW, lr=0.05),
)


def check_dead(run: HatTraining) -> None:
    """All that is dead is +0.0, with all that goes with it; the counts are the masks'."""
    run.pruner.verify()
    for key, mask in run.pruner.masks.items():
        dead, weight = ~mask, run.weights[key].detach()
        for tensor in (weight, *run.kept(key)):
            assert not tensor[dead].any(), f"{run.spec}, step {run.step}: {key}"
        assert not weight[dead].signbit().any()
        assert mask.any(), f"{run.spec}, step {run.step}: {key} is empty"
        assert run.pruner.zeros[key] == int(dead.sum())


def check_revived(run: HatTraining, before: dict[str, Tensor]) -> None:
    """What comes back does so from zero, with nothing that it remembers."""
    for key, mask in run.pruner.masks.items():
        back = mask & ~before[key]
        assert not (run.pruner.monotone and back.any())
        weight = run.weights[key].detach()
        born = {"deepr": max(1e-12, torch.finfo(weight.dtype).tiny), "nest": math.inf}  # with a step along its gradient
        most = born.get(run.name, 0.0)
        assert not (weight[back].abs() > most).any()
        for tensor in run.kept(key):
            assert not tensor[back].any(), f"{run.spec}, step {run.step}: {key} remembers"


def live(run: HatTraining) -> dict[str, int]:
    return {key: int(mask.sum()) for key, mask in run.pruner.masks.items()}


@pytest.mark.parametrize(("number", "spec"), [pytest.param(n, spec, id=spec) for n, spec in enumerate(SPECS)])
def test_every_step(number: int, spec: str) -> None:
    run = HatTraining(spec, make=OPTIMIZERS[number % 3])
    twin = HatTraining(spec, make=OPTIMIZERS[number % 3], channels_last=True)
    run.begin()
    twin.begin()
    check_dead(run)
    counts = live(run)
    for _ in range(STEPS):
        before = run.masks()
        changed = run.take_step()
        twin.take_step()
        assert twin.pruner.digest() == run.pruner.digest()
        moved = any(not torch.equal(mask, before[key]) for key, mask in run.pruner.masks.items())
        assert changed or not moved
        assert run.step in run.evaluations() or not changed
        assert (run.step in run.evaluations()) == run.pruner.evaluates_at(run.step)
        check_dead(run)
        check_revived(run, before)
        if run.name in STRICT:
            assert live(run) == counts
        if run.name in STRICT_IN_ALL:
            assert sum(live(run).values()) == sum(counts.values())
        run.average()


@pytest.mark.parametrize("spec", ["set:every=2", "rigl:every=2", "dsr:every=2,threshold=0.1", "deepr"])
@pytest.mark.parametrize("make", OPTIMIZERS, ids=["sgd", "adam", "adamw"])
def test_revived_weights_remember_nothing(spec: str, make: Callable[[Iterator[nn.Parameter]], optim.Optimizer]) -> None:
    run = HatTraining(spec, make=make)
    run.begin()
    back = 0
    for _ in range(STEPS):
        before = run.masks()
        run.take_step()
        check_revived(run, before)
        back += sum(int((mask & ~before[key]).sum()) for key, mask in run.pruner.masks.items())
        run.average()
    assert back > 2


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_that_is_resumed_goes_on_to_the_bit(spec: str) -> None:
    run = HatTraining(spec)
    run.begin()
    run.run(5)
    other = HatTraining(spec, taken_from=run)
    assert other.run(STEPS) == run.run(STEPS)
    for key, weight in run.weights.items():
        pairs = [(weight.detach(), other.weights[key].detach()), *zip(run.kept(key), other.kept(key), strict=True)]
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("spec", SPECS)
def test_a_plan_changes_nothing(spec: str) -> None:
    run = HatTraining(spec)
    before = {key: weight.detach().clone() for key, weight in run.weights.items()}
    assert [layer.key for layer, _, _ in run.pruner.plan()] == run.keys
    assert all(mask.all() for mask in run.pruner.masks.values())
    assert all(torch.equal(weight, before[key]) for key, weight in run.weights.items())


@pytest.mark.parametrize("spec", MEMBERS)
def test_chance_is_the_seeds(spec: str) -> None:
    """Two pruners of one seed draw alike; those of another do not, where there is something to draw."""
    digests = []
    for seed in (3, 3, 4):
        run = HatTraining(spec, seed=seed)
        run.begin()
        digests.append(run.run(FIRST + 2))
    assert digests[0] == digests[1]
    assert (digests[0] != digests[2]) == (spec in RANDOM) or spec not in KNOWN


@pytest.mark.parametrize(("number", "spec"), [pytest.param(n, spec, id=spec) for n, spec in enumerate(MEMBERS)])
def test_half_precision(number: int, spec: str) -> None:
    run = HatTraining(spec, dtype=(torch.float16, torch.bfloat16)[number % 2])
    run.begin()
    counts = live(run)
    for _ in range(4):
        before = run.masks()
        run.take_step()
        check_dead(run)
        check_revived(run, before)
    assert run.name not in STRICT or live(run) == counts


def highest(spec: str) -> float:
    """The target that leaves one unit of each layer; any, where a method has none."""
    if not METHODS.build(spec).axes().targeted:
        return 0.99
    with pytest.raises(BadOption, match="with one of each layer left it is") as refused:
        HatTraining(spec, target=0.999)
    return float(str(refused.value).rpartition(" ")[2])


@pytest.mark.parametrize("spec", SPECS)
def test_no_layer_is_emptied(spec: str) -> None:
    """Nor does it stop a method that there is next to nothing to swap."""
    run = HatTraining(spec, target=highest(spec))
    run.begin()
    for _ in range(LAST):
        run.take_step()
        run.pruner.verify()
        assert all(live(run).values())


@pytest.mark.parametrize(
    ("spec", "by_layer", "target"),
    [
        ("gmp", True, "0.37"),
        ("gmp:pool=global", False, "0.8"),
        ("gmp:pool=erk", False, "0.37"),
        ("gmp:pool=er,initial=0.2", False, "0.8"),
        ("set", False, "0.37"),
        ("rigl:allocation=uniform", True, "0.8"),
        ("static:allocation=uniform", True, "0.37"),
        ("static", False, "0.8"),
        ("srigl", False, "0.8"),
        ("deepr", True, "0.37"),
        ("dsr:threshold=0.05", False, "0.8"),
        ("dsr:threshold=10", False, "0.05"),
        ("snfs:allocation=erk", False, "0.37"),
        ("snip", False, "0.8"),
        ("snip:pool=layer", True, "0.37"),
        ("granet", False, "0.8"),
        ("ac-dc", False, "0.37"),
        ("ac-dc:pool=layer", True, "0.8"),
        ("deep-compression", False, "0.8"),
    ],
)
def test_the_target_is_met_to_the_weight(spec: str, by_layer: bool, target: str) -> None:
    run, share = HatTraining(spec, target=float(target)), Fraction(target)
    planned = {layer.key: left for layer, left, _ in run.pruner.plan()}
    run.begin()
    run.run(STEPS)
    sizes = {key: weight.numel() for key, weight in run.weights.items()}
    left = live(run)
    if by_layer:
        assert left == {key: n - math.ceil(n * share) for key, n in sizes.items()}
    elif run.name == "dsr":
        assert sum(left.values()) == sum(n - math.ceil(n * share) for n in sizes.values())
    else:
        assert sum(left.values()) == sum(sizes.values()) - math.ceil(sum(sizes.values()) * share)
    # Shapes alone decide, or the number in all.
    determined = by_layer or run.name in ("static", "set", "rigl", "srigl") or "pool=er" in spec
    assert not determined or planned == left
    assert sum(planned.values()) == sum(left.values()) or run.name == "snip"


def test_the_l1_term_and_the_noise_of_deepr() -> None:
    run = HatTraining("deepr:l1=0.25,temperature=0")
    run.begin()
    run.step = 1
    run.give_gradients()
    given = {key: weight.grad.clone() for key, weight in run.weights.items() if weight.grad is not None}
    run.pruner.after_backward()
    for key, weight in run.weights.items():
        expected = (given[key] + 0.25 * weight.detach().sign()) * run.pruner.masks[key]
        assert torch.equal(weight.grad, expected)


def test_noise_has_the_variance_that_was_asked_for() -> None:
    torch.manual_seed(0)
    model = nn.Linear(100, 100, bias=False)
    layers, _ = layers_of_model(model)
    method = METHODS.build("deepr:l1=0,temperature=0.5,eta=0.04,allocation=erk")
    era = Era(first_step=0, last_step=10**6)
    pruner = Pruner(model, layers, conv=method, linear=method, target=0.5, era=era, kernels="torch")
    pruner.begin()
    model.weight.grad = torch.zeros_like(model.weight)
    pruner.after_backward()
    noise = model.weight.grad[pruner.masks["weight"]]
    assert float(noise.var()) == pytest.approx(2 * 0.04 * 0.5, rel=0.1)
    assert abs(float(noise.mean())) < 0.02


def test_the_threshold_of_narang_ends_at_q() -> None:
    """Continuous where the slope changes, 1.5 times as steep from there, and exactly q at the end."""
    run = HatTraining("narang:q=0.2,ramp_at=0.25,every=1")
    method = METHODS.build("narang:q=0.2,ramp_at=0.25,every=1")
    units = run.pruner._masks._layers()[run.keys[0]]
    at = [method.threshold(units, run.pruner._masks._moment(step)) for step in range(FIRST, LAST + 1)]
    slopes = [b - a for a, b in pairwise(at)]
    assert at[0] == 0 and at[-1] == pytest.approx(0.2, rel=1e-12)
    assert slopes[-1] / slopes[0] == pytest.approx(1.5, rel=1e-9)


@pytest.mark.parametrize("spec", ["rigl:every=2", "granet:every=2", "snfs:every=2", "srigl:every=2"])
def test_gradients_that_overflowed_are_not_read(spec: str) -> None:
    """Nothing is swapped by them; what reads none of them happens all the same."""
    run = HatTraining(spec)
    run.begin()
    run.run(FIRST + 1)
    before = run.masks()
    run.step += 1
    run.give_gradients()
    run.weights[run.keys[0]].grad.view(-1)[0] = torch.inf  # type: ignore[union-attr]
    run.pruner.after_backward()
    run.optimizer.zero_grad()  # as a scaler would have it
    run.pruner.after_step(run.step)
    same = all(torch.equal(mask, before[key]) for key, mask in run.pruner.masks.items())
    assert same or run.name in ("granet", "snfs")
    if run.name == "granet":
        assert not any((mask & ~before[key]).any() for key, mask in run.pruner.masks.items())
    check_dead(run)


def test_layers_without_a_gradient_take_part() -> None:
    """A head that the loss does not reach is swapped by zeros."""
    run = HatTraining("rigl:every=1,fraction=0.5")
    run.begin()
    run.run(FIRST)
    run.step += 1
    run.give_gradients()
    run.weights[run.keys[-1]].grad = None
    assert not run.pruner.after_backward()
    assert run.pruner.after_step(run.step)
    check_dead(run)


@pytest.mark.parametrize(("below", "factor"), [(56, 0.5), (55, 1.0), (45, 1.0), (44, 2.0)])
def test_the_threshold_of_dsr_has_a_band(below: int, factor: float) -> None:
    """Of 100 weights 50 should move: it stays with 45 to 55."""
    model = nn.Linear(10, 10, bias=False)
    model.weight.data = (torch.randperm(100).reshape(10, 10) + 1) / 100
    layers, _ = layers_of_model(model)
    threshold = (below + 0.5) / 100
    method = METHODS.build(f"dsr:moves=50,threshold={threshold},every=1")
    era = Era(first_step=0, last_step=5)
    pruner = Pruner(model, layers, conv=method, linear=method, target=0.0, era=era, kernels="torch")
    pruner.begin()
    pruner.after_step(1)
    assert pruner.state_dict()["method"]["memory"]["threshold"] == pytest.approx(threshold * factor)
    assert int((model.weight == 0).sum()) == below  # all of them back, from zero
