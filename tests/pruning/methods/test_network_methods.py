"""Every method of the whole network against its paper's words as literal loops, mask by mask over a run."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starfire_cli.pruning import METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era
from tests.helpers.network_rules import RULES, Rule, Setting, View

STEPS, FIRST, LAST, EVERY, SEED, GRAIN = 21, 2, 19, 4, 5, 64

# The method, its options, the target.
RUNS: list[tuple[str, dict[str, Any], str]] = [
    ("gmp", {}, "0.8"),
    ("gmp", {"pool": "global"}, "0.8"),
    ("gmp", {"pool": "erk", "initial": "0.3"}, "0.75"),
    ("gmp", {"pool": "er"}, "0.9"),
    ("narang", {}, "0.7"),
    ("narang", {"q": 0.25, "ramp_at": "0.25"}, "0.5"),
    ("narang", {"q": 30.0}, "0.5"),
    ("set", {}, "0.6"),
    ("set", {"by_sign": False, "anneal": "cosine", "allocation": "uniform"}, "0.8"),
    ("dsr", {"threshold": 0.05, "moves": 0.2}, "0.7"),
    ("dsr", {"threshold": 0.4, "moves": 20.0}, "0.1"),
    ("dsr", {"unit": "kernel", "threshold": 0.1, "moves": 0.15}, "0.6"),
    ("deepr", {"l1": 0.01, "temperature": 0.01}, "0.6"),
    ("deepr", {"temperature": 0.1, "allocation": "erk"}, "0.1"),
    ("rigl", {}, "0.8"),
    ("rigl", {"fraction": 0.9, "allocation": "uniform"}, "0.5"),
    ("granet", {}, "0.8"),
    ("granet", {"initial": "0.5", "end": 0.2}, "0.85"),
    ("srigl", {}, "0.8"),
    ("srigl", {"salient": 0.9, "fraction": 0.6}, "0.9"),
    ("srigl", {"allocation": "uniform", "fraction": 0.5}, "0.3"),
    ("snip", {}, "0.8"),
    ("snip", {"pool": "layer"}, "0.8"),
    ("snfs", {}, "0.7"),
    ("snfs", {"allocation": "erk"}, "0.3"),
    ("static", {}, "0.9"),
    ("static", {"allocation": "uniform"}, "0.85"),
    ("static", {"allocation": "er"}, "0.9"),
    ("ac-dc", {"phases": 3}, "0.8"),
    ("ac-dc", {"pool": "layer"}, "0.8"),
    ("deep-compression", {}, "0.8"),
    ("deep-compression", {"s": 0.8}, "0.8"),
]
CLOCKLESS = ("deepr", "ac-dc", "snip", "static")  # methods without the option `every`


def network(*, channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 10, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 6),
    )
    return model.to(memory_format=torch.channels_last) if channels_last else model


def quantise(tensors: list[Tensor]) -> None:
    """Round, so that there are ties and zeros in plenty, and sums are exact."""
    for tensor in tensors:
        tensor.copy_((tensor * GRAIN).round() / GRAIN)


def flat(tensor: Tensor) -> list[float]:
    return tensor.detach().contiguous().reshape(-1).tolist()


class Follower:
    """Trains with a pruner, and at every step compares it with a rule."""

    def __init__(self, name: str, options: dict[str, Any], target: str, *, channels_last: bool) -> None:
        rule_options = {key: value for key, value in options.items() if key not in ("l1", "temperature")}
        self.rule: Rule = RULES[name](**rule_options)
        clocked = name not in CLOCKLESS
        every = EVERY if clocked else 1
        texts = [f"{key}={value}" for key, value in {**options, **({"every": every} if clocked else {})}.items()]
        method = METHODS.build(f"{name}:{','.join(texts)}")
        self.exact = name == "deepr"  # whose births are too small for a grain
        self.model = network(channels_last=channels_last)
        layers, _ = layers_of_model(self.model)
        era = Era(first_step=FIRST, last_step=LAST)
        self.pruner = Pruner(
            self.model, layers, conv=method, linear=method, target=float(target), era=era, seed=SEED, kernels="torch"
        )
        self.setting = Setting(target=Fraction(target), first=FIRST, last=LAST, every=every, seed=SEED)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        self.pruner.attach(self.optimizer)
        self.weights = {x.key: self.model.get_parameter(x.key) for x in layers[1 if self.rule.dense_first else 0 :]}
        self.averages = {key: np.zeros(w.numel(), np.float32) for key, w in self.weights.items()}
        self.alive = {key: [True] * w.numel() for key, w in self.weights.items()}
        self.generator = torch.Generator().manual_seed(1)

    def backward(self) -> None:
        self.optimizer.zero_grad()
        images = torch.randn(8, 3, 6, 6, generator=self.generator)
        labels = torch.randint(0, 6, (8,), generator=self.generator)
        cross_entropy(self.model(images), labels).backward()
        if not self.exact:
            quantise([w.grad for w in self.weights.values() if w.grad is not None])

    def views(self, before: dict[str, list[float]], gradients: dict[str, list[float]]) -> list[View]:
        return [
            View(
                key=key,
                shape=tuple(w.shape),
                weight=flat(w),
                before=before[key],
                gradient=gradients[key],
                average=self.averages[key].tolist(),
                alive=self.alive[key],
            )
            for key, w in self.weights.items()
        ]

    def gradients(self) -> dict[str, list[float]]:
        return {key: flat(w.grad) for key, w in self.weights.items() if w.grad is not None}

    def due(self, step: int) -> bool:
        if self.rule.evaluate is None or not FIRST < step <= LAST:
            return False
        return (step - FIRST) % self.setting.every == 0 or (step == LAST and self.rule.at_the_end)

    def momenta(self) -> dict[str, list[float]]:
        return {key: flat(self.optimizer.state[w]["momentum_buffer"]) for key, w in self.weights.items()}

    def begin(self) -> None:
        with torch.no_grad():
            quantise(list(self.weights.values()))
        before = {key: flat(w) for key, w in self.weights.items()}
        self.backward()
        views = self.views(before, self.gradients())
        self.pruner.begin(lambda: 0.0)
        self.rule.begin(self.setting, views, 0)
        self.compare(0, views, None)

    def step(self, step: int) -> None:
        before = {key: flat(w) for key, w in self.weights.items()}
        self.backward()
        gradients = self.gradients()
        for key, gradient in gradients.items():
            self.averages[key] = self.averages[key] * np.float32(0.9) + np.array(gradient, np.float32)
        replaced = self.due(step) and self.rule.replaces_step
        momenta = self.momenta() if replaced else None
        if replaced:
            views = self.views(before, gradients)
        assert self.pruner.after_backward() is not replaced
        if not replaced:
            self.optimizer.step()
            with torch.no_grad():
                if not self.exact:
                    quantise(list(self.weights.values()))
                for weight in self.weights.values() if self.exact else ():
                    weight[step % len(weight), 0] = 0.0  # which counts as a change of sign
            views, momenta = self.views(before, gradients), self.momenta()
        changed = self.pruner.after_step(step)
        was = {key: list(alive) for key, alive in self.alive.items()}
        if self.due(step):
            assert self.rule.evaluate is not None
            self.rule.evaluate(self.setting, views, step)
        assert not (was != self.alive and not changed)
        self.compare(step, views, momenta)

    def compare(self, step: int, views: list[View], momenta: dict[str, list[float]] | None) -> None:
        """Masks, weights and momenta: dead and restarted ones are 0, all others are what they were."""
        masks, now = self.pruner.masks, self.momenta() if momenta is not None else {}
        assert list(masks) == list(self.weights)
        for view in views:
            assert flat(masks[view.key]) == view.alive, f"step {step}: the mask of {view.key}"
            live = list(zip(view.weight, view.alive, strict=True))
            expected = [view.born.get(i, w) if alive else 0.0 for i, (w, alive) in enumerate(live)]
            assert flat(self.weights[view.key]) == expected, f"step {step}: the weights of {view.key}"
            if momenta is not None:
                old = zip(momenta[view.key], view.alive, strict=True)
                kept = [m if alive and i not in view.born else 0.0 for i, (m, alive) in enumerate(old)]
                assert now[view.key] == kept, f"step {step}: the momentum of {view.key}"


@pytest.mark.parametrize(
    ("number", "name", "options", "target"),
    [pytest.param(n, *run, id=f"{run[0]}-{n}") for n, run in enumerate(RUNS)],
)
def test_a_run_follows_the_rule(number: int, name: str, options: dict[str, Any], target: str) -> None:
    run = Follower(name, options, target, channels_last=number % 2 == 1)
    run.begin()
    for step in range(1, STEPS + 1):
        run.step(step)
    run.pruner.verify()


def test_every_method_but_mix_and_those_of_penalties_has_a_rule() -> None:
    names = METHODS.taking("network").names()
    # Of lottery tickets: test_tickets.py.
    plain = {name for name in names if METHODS.build(name).axes().penalty is None}
    assert plain - {"mix", "lottery"} <= set(RULES) <= set(names)
    assert {name for name, _, _ in RUNS} == set(RULES)
