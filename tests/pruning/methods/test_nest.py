"""NeST: growth by gradients, neurons that wake, and pruning by effective weights, each beside its literal rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starfire_cli.errors import BadOption
from starfire_cli.pruning import METHODS, NetworkMethod, Pruner, layers_of_model
from starfire_cli.pruning.budget import pruned
from starfire_cli.pruning.channels.sequences import batchnorms_after, linear_pairs
from starfire_cli.pruning.neuron_growth import NeuronGrowth, newborn
from starfire_cli.pruning.schedule import Era
from tests.tiny import Net, Perceptron

TARGET, STEPS = 0.8, 40


class Training:
    """A network trained on noise, its gradients averaged here once more."""

    def __init__(self, net: nn.Module, spec: str, *, lr: float = 0.05) -> None:
        self.net, self.step = net.train(), 0
        method = METHODS.build(spec)
        assert isinstance(method, NetworkMethod)
        layers, _ = layers_of_model(net)
        era = Era(first_step=0, last_step=STEPS)
        self.pruner = Pruner(net, layers, conv=method, linear=method, target=TARGET, era=era)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
        self.pruner.attach(self.optimizer)
        self.average: dict[str, Tensor] = {}
        self.pruner.begin()

    def advance(self) -> None:
        self.step += 1
        draws = torch.Generator().manual_seed(self.step)
        images, labels = torch.rand(16, 3, 16, 16, generator=draws), torch.randint(10, (16,), generator=draws)
        cross_entropy(self.net(images), labels).backward()
        for key, weight in self.pruner.weights.items():
            assert weight.grad is not None
            self.average[key] = 0.9 * self.average.get(key, torch.zeros_like(weight)) + weight.grad
        if self.pruner.after_backward():
            self.optimizer.step()
        self.before = {key: weight.detach().clone() for key, weight in self.pruner.weights.items()}
        self.masks = {key: mask.clone() for key, mask in self.pruner.masks.items()}
        self.pruner.after_step(self.step)
        self.optimizer.zero_grad()


def due(step: int) -> float:
    """The sparsity by default: from 0.9 to 0.6 in the first half, then to 0.8."""
    return 0.9 - 0.3 * step / 20 if step <= 20 else 0.6 + 0.2 * (step - 20) / 20


@pytest.mark.parametrize("net", [Net, Perceptron])
def test_growth_and_pruning_beside_their_literal_rules(net: Any) -> None:
    torch.manual_seed(0)
    training = Training(net(10), "nest:every=4,neurons=0")
    sizes = {key: mask.numel() for key, mask in training.pruner.masks.items()}
    assert {k: int((~m).sum()) for k, m in training.pruner.masks.items()} == {
        k: pruned(n, 0.9) for k, n in sizes.items()
    }
    norms = {"conv1.weight": "bn1", "conv2.weight": "bn2"} if net is Net else {}
    returned = 0
    while training.step < STEPS:
        training.advance()
        for key, mask in training.pruner.masks.items():
            was, old, now = training.masks[key], training.before[key], training.pruner.weights[key].detach()
            if training.step % 4:
                assert torch.equal(mask, was)
                continue
            assert int((~mask).sum()) == pruned(sizes[key], due(training.step)), (key, training.step)
            flat = was.reshape(-1).tolist()
            if training.step <= 20:
                gradient = training.average[key]
                score = gradient.abs().reshape(-1).tolist()
                order = sorted((i for i, alive in enumerate(flat) if not alive), key=lambda i: -score[i])
                expected = set(order[: int(mask.sum()) - int(was.sum())])
                assert torch.allclose(now[mask & ~was], -0.1 * gradient[mask & ~was])
                found = set((mask & ~was).reshape(-1).nonzero().flatten().tolist())
                returned += len(found)
            else:
                score = old.abs().reshape(-1).tolist()
                if key in norms:
                    norm = training.net.get_submodule(norms[key])
                    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
                    factor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
                    score = (old.abs() * factor.abs().reshape(-1, 1, 1, 1)).reshape(-1).tolist()
                order = sorted((i for i, alive in enumerate(flat) if alive), key=lambda i: score[i])
                expected = set(order[: int(was.sum()) - int(mask.sum())])
                found = set((was & ~mask).reshape(-1).nonzero().flatten().tolist())
                assert not (mask & ~was).any(), "what is gone comes back in a later growth phase only"
            assert found == expected, (key, training.step)
            assert torch.equal(now[mask & was], old[mask & was]) and not now[~mask].any()
    assert returned > 100


def test_what_was_pruned_may_return_in_a_later_phase() -> None:
    torch.manual_seed(0)
    training = Training(Net(10), "nest:every=2,phases=2")
    gone, back, sparsities = set(), set(), []
    while training.step < STEPS:
        training.advance()
        mask, was = training.pruner.masks["conv2.weight"], training.masks["conv2.weight"]
        gone |= set((was & ~mask).reshape(-1).nonzero().flatten().tolist())
        new = set((mask & ~was).reshape(-1).nonzero().flatten().tolist())
        assert not new or training.step <= 10 or 20 < training.step <= 30
        back |= new & gone
        sparsities.append(float((~mask).float().mean()))
    assert back
    assert [sparsities[i - 1] for i in (10, 20, 30, 40)] == pytest.approx([0.6, 0.8, 0.6, 0.8], abs=2e-3)


def test_the_bridging_gradient_is_that_of_a_connection_past_the_layer() -> None:
    torch.manual_seed(0)
    net, growth = Perceptron(10).train(), NeuronGrowth(share=0.5, ratio=0.1, strength=0.4)
    layers, _ = layers_of_model(net)
    method = METHODS.build("nest")
    assert isinstance(method, NetworkMethod)
    pruner = Pruner(net, layers, conv=method, linear=method, target=TARGET, era=Era(first_step=0, last_step=STEPS))
    growth.bind(net, pruner._tensors)
    assert growth.pairs == [("fc1.weight", "fc2.weight"), ("fc2.weight", "fc3.weight")]
    images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
    for part in (slice(3), slice(3, 8)):  # as with --accumulate
        (cross_entropy(net(images[part]), labels[part], reduction="sum") / 8).backward()
    found = dict(growth._step)
    bridges = [torch.zeros(16, 64, requires_grad=True), torch.zeros(10, 20, requires_grad=True)]
    x = torch.relu(net.conv(images)).flatten(1)
    h1 = torch.relu(net.fc1(x))
    h2 = torch.relu(net.fc2(h1) + x @ bridges[0].T)
    cross_entropy(net.fc3(h2) + h1 @ bridges[1].T, labels).backward()
    for key, bridge in zip(("fc1.weight", "fc2.weight"), bridges, strict=True):
        assert bridge.grad is not None and torch.allclose(found[key], bridge.grad, atol=1e-7)
    listened = dict(growth._step)
    net.eval()(images).sum().backward()
    net.train()
    with torch.no_grad():
        net(images)
    assert all(growth._step[key] is value for key, value in listened.items()), "evaluation changes nothing"


def test_dormant_neurons_wake_evenly_and_nothing_else_touches_them() -> None:
    torch.manual_seed(0)
    training = Training(Perceptron(10), "nest:every=4,neurons=0.5,strength=0.4,ratio=0.2")
    counts = []

    def dormant() -> Tensor:
        masks = training.pruner.masks
        return ~(masks["fc2.weight"].any(1) | masks["fc3.weight"].any(0))

    was, masks = dormant(), training.pruner.masks
    assert int(was.sum()) == 8
    assert int((~(masks["fc1.weight"].any(1) | masks["fc2.weight"].any(0))).sum()) == 10
    while training.step < 20:
        training.advance()
        now = dormant()
        woken = was & ~now
        if training.step % 4 == 0:
            counts.append(int(woken.sum()))
            assert not (now & ~was).any()
            new = training.pruner.weights["fc3.weight"].detach()[:, woken]
            old = training.before["fc3.weight"]
            mean = float(old.abs().sum()) / int(training.masks["fc3.weight"].sum())
            assert float(new[new != 0].abs().mean()) == pytest.approx(0.4 * mean, rel=1e-4)
        else:
            assert not woken.any()
        was = now
    assert counts == [2, 2, 1, 2, 1] and not was.any()  # 8 in 5 evaluations: those left rest until they are due


def test_newborn_weights_step_against_the_bridging_gradient() -> None:
    draws = np.random.default_rng(0)
    bridging = np.zeros((3, 4))
    bridging[1, 2], bridging[0, 3], bridging[2, 0] = 4.0, -9.0, 1.0
    into, out = newborn(bridging, 2, 2 / 12, draws)  # the two largest, one for each neuron
    assert np.argwhere(into).tolist() == [[0, 3], [1, 2]] and np.argwhere(out).tolist() == [[0, 0], [1, 1]]
    assert out[0, 0] * into[0, 3] > 0 > out[1, 1] * into[1, 2]
    assert abs(into[0, 3]) < 3 and abs(out[0, 0]) < 3 and abs(into[1, 2]) < 2
    many = [newborn(bridging, 1, 2 / 12, np.random.default_rng(seed)) for seed in range(400)]
    assert np.mean([abs(i[0, 3]) for i, _ in many]) == pytest.approx(1.5, abs=0.15), "sqrt(9) times U(0, 1)"
    assert 120 < sum(i[0, 3] > 0 for i, _ in many) < 280, "the sign of each side is random"
    into, out = newborn(np.zeros((3, 4)), 2, 0.5, draws)
    assert not into.any() and not out.any()


def test_layers_in_a_row_are_found() -> None:
    assert batchnorms_after(Net(10)) == {"conv1.weight": "bn1", "conv2.weight": "bn2"}
    assert linear_pairs(Net(10)) == []
    shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    assert linear_pairs(shared) == [("0", "2"), ("2", "4")]
    shared[2] = shared[0]
    assert linear_pairs(shared) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nest:phases=0", "phases=0 is out of range"),
        ("nest:share=0", "share=0 is out of range"),
        ("nest:share=1", "share=1 is out of range"),
        ("nest:neurons=1", "neurons=1 is out of range"),
        ("nest:strength=0", "strength=0 is out of range"),
        ("nest:step=-1", "step=-1 is out of range"),
        ("nest:seed=2", "seed=2 is out of range"),
        ("nest:every=0", "every=0 is out of range"),
    ],
)
def test_options_out_of_range_are_named(spec: str, said: str) -> None:
    with pytest.raises(BadOption, match=said):
        METHODS.build(spec)


@pytest.mark.parametrize("options", ["grown=0.85", "seed=0.5"])
def test_growth_that_runs_backwards_is_refused(options: str) -> None:
    with pytest.raises(BadOption, match=r"growth from seed=.* and pruning to --target 0.8 run backwards"):
        Training(Net(10), f"nest:{options}")
