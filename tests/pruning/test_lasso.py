"""Methods with a penalty: whose gradients are added when, what dies of it, and the scales on residual branches."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starfire_cli.errors import BadOption
from starfire_cli.models import build_model
from starfire_cli.pruning import METHODS, NetworkMethod, Pruner, layers_of_model
from starfire_cli.pruning.axes import Shrinking
from starfire_cli.pruning.branch_scales import accelerated_step
from starfire_cli.pruning.channels.branches import residual_branches
from starfire_cli.pruning.lasso import live_channels, zero_below
from starfire_cli.pruning.schedule import Era
from tests.tiny import Net, Residual


def pruner_of(model: nn.Module, spec: str, first: int = 0, last: int = 1000, target: float = 0.5) -> Pruner:
    method = METHODS.build(spec)
    assert isinstance(method, NetworkMethod)
    era = Era(first_step=first, last_step=last)
    return Pruner(model, layers_of_model(model)[0], conv=method, linear=method, target=target, era=era)


class Named(nn.Module):
    """Two convolutions and two linear layers, under the names that the authors' rules go by."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 3, bias=False)
        self.fc1, self.fc = nn.Linear(5, 6, bias=False), nn.Linear(6, 3, bias=False)
        for parameter in self.parameters():
            values = ((torch.arange(parameter.numel(), dtype=torch.float64) * 7) % 11 - 5) / 10
            parameter.data = values.reshape(parameter.shape)
        self.conv2.weight.data[2] = 0
        self.conv2.weight.data[:, 1] *= 1e-4


# What get_group_lasso_global and get_group_lasso_group of VictorSuciu/PruneTrain-Dynamic (src/custom/
# group_lasso_regs.py) say of `Named`, computed with their rules in float64: the term, and of each parameter's gradient
# its second entry and the sum of |entries|.
ORACLE = {
    "global": (
        30.43462561730977,
        [0.11973686780326774, 0.2245399868037397, 0.5276390592812195, 0.7071067369923778],
        [17.931936507497305, 38.17232930586739, 22.0616462700998, 9.419670353564284],
    ),
    "group": (
        137.62478017673644,
        [0.6221710157232534, 1.4199001110874254, 1.2368761696683481, 1.2247447948450416],
        [93.17707532725363, 243.30194305417814, 51.576877994435534, 16.315347642923626],
    ),
}


@pytest.mark.parametrize("form", ORACLE)
def test_prunetrains_term_is_that_of_the_authors_code(form: str) -> None:
    total, second, sums = ORACLE[form]
    model = Named()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pruner = pruner_of(model, f"prunetrain:weighted={str(form == 'group').lower()}")
    pruner.begin(lambda: 2.302585)
    strength = pruner.state_dict()["method"]["penalty"]["strength"]
    assert strength == pytest.approx(0.2 * 2.302585 / (total * 0.8), rel=1e-12)
    assert pruner.after_backward()
    gradients = [p.grad / strength for p in model.parameters() if p.grad is not None]
    assert [float(g.flatten()[1]) for g in gradients] == pytest.approx(second, rel=1e-9)
    assert [float(g.abs().sum()) for g in gradients] == pytest.approx(sums, rel=1e-9)


def test_a_strength_that_is_given_needs_no_batch_and_acts_in_the_era_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))
    pruner = pruner_of(model, "slimming:strength=0.25", first=1, last=3)
    added = []
    for step in range(1, 6):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pruner.after_backward()
        pruner.after_step(step)
        added.append([float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None])
    assert added == [[0.0] * 5, [0.0, 0.25, 0, 0, 0], [0.0, 0.25, 0, 0, 0], [0.0] * 5, [0.0] * 5]


def test_channels_are_dead_by_their_largest_magnitude() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 3, 1), nn.Linear(3, 2))
    layers, _ = layers_of_model(model)
    weights = {layer.key: torch.full(layer.shape, -0.5) for layer in layers}  # negative: |w| counts
    weights["0.weight"][1] = -1e-4
    weights["0.weight"][:, 0] = 0  # of the image: nothing to remove
    weights["1.weight"][2] = 0  # depthwise
    weights["2.weight"][:, [0, 3]] = 1e-4
    weights["2.weight"][2] = torch.tensor([0.0, 1e-4, 1.001e-4, 0.0]).reshape(4, 1, 1)
    weights["3.weight"][0] = 0  # a class
    weights["3.weight"][:, 1:] = 1e-5
    masks = {key: torch.ones_like(weight, dtype=torch.bool) for key, weight in weights.items()}
    masks["0.weight"][3, 2] = False
    live = live_channels(model, layers, weights, masks, 1e-4)
    assert live["0.weight"].flatten(1).tolist() == [[True] * 3, [False] * 3, [True] * 3, [True, True, False]]
    assert live["1.weight"].all()
    assert live["2.weight"].flatten(1).tolist() == [[False, True, True, False]] * 3
    assert live["3.weight"].tolist() == [[True, False, False]] * 2
    small = {key: torch.full_like(weight, 1e-6) for key, weight in weights.items()}
    small["0.weight"][2] = 2e-6
    few = live_channels(model, layers, small, {key: torch.ones_like(m) for key, m in masks.items()}, 1e-4)
    assert few["0.weight"].flatten(1).any(1).tolist() == [False, False, True, False]  # the strongest of a layer stays


@pytest.mark.parametrize(
    ("interval", "first", "last", "due"),
    [
        (10, 0.0, 30.0, [10, 20, 30]),
        (3, 0.0, 8.0, [3, 6, 8]),
        (None, 0.0, 182.0, [*range(10, 182, 10), 182]),
        (None, 0.0, 15.0, [3, 6, 9, 12, 15]),
        (2, 1.0, 4.5, [3, 5]),
        (1, 0.5, 2.0, [1, 2]),
    ],
)
def test_when_channels_are_removed(interval: int | None, first: float, last: float, due: list[int]) -> None:
    shrinking = Shrinking(threshold=1e-4, interval=interval)
    assert [epoch for epoch in range(1, 200) if shrinking.due(epoch, first, last)] == due


def test_weights_below_the_limit_become_plus_zero() -> None:
    limit = 1e-4
    just = torch.tensor([limit]).nextafter(torch.tensor([0.0]))
    weight = torch.cat([torch.tensor([-1.0, limit, -limit, 0.0, -0.0, -1e-5, 2e-4]), just, -just])
    zero_below(weight, limit)
    assert weight.tolist() == torch.tensor([-1.0, limit, -limit, 0, 0, 0, 2e-4, 0, 0]).tolist()
    assert not weight[weight == 0].signbit().any()


def batches(count: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.rand(8, 3, 12, 12, generator=generator, dtype=torch.float64)
        yield x, torch.randint(0, 4, (8,), generator=generator)


def trained(model: nn.Module, pruner: Pruner, optimizer: torch.optim.Optimizer, steps: int) -> Iterator[int]:
    pruner.attach(optimizer)
    for step, (images, labels) in enumerate(batches(steps), 1):
        optimizer.zero_grad()
        cross_entropy(model.train()(images), labels).backward()  # type: ignore[no-untyped-call]
        if pruner.after_backward():
            optimizer.step()
        pruner.after_step(step)
        yield step


@pytest.mark.parametrize(
    ("unit", "axes", "layer"),
    [("filter", (1, 2, 3), "conv1"), ("channel", (0, 2, 3), "conv2"), ("shape", (0,), "conv2")],
)
def test_what_ssl_brought_to_zero_is_dead_from_the_eras_end_on(unit: str, axes: tuple[int, ...], layer: str) -> None:
    torch.manual_seed(0)
    model = Net(4).double()
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, nn.Parameter)
    weight.data[{"filter": [1, 4], "channel": (slice(None), 2), "shape": (slice(None), 0, slice(None), 1)}[unit]] *= (
        0.01
    )
    pruner = pruner_of(model, f"ssl:units={unit},strength=0.3,threshold=0.02", last=12)
    for step in trained(model, pruner, torch.optim.SGD(model.parameters(), 0.03, momentum=0.9), 16):
        if step <= 12:
            assert not ((weight != 0) & (weight.abs() < 0.02)).any()
        if step == 11:
            assert not any(pruner.zeros.values())  # what is zero may come back
        if step == 12:
            gone = (weight.detach() == 0).all(axes[0], keepdim=True)
            for axis in axes[1:]:
                gone = gone.all(axis, keepdim=True)
            assert 0 < int(gone.sum()) < gone.numel()
            mask = pruner.masks[f"{layer}.weight"].clone()
            assert torch.equal(mask, (~gone).expand_as(mask))
    assert torch.equal(mask, pruner.masks[f"{layer}.weight"]) and not weight.detach()[~mask].any()
    assert ((weight != 0) & (weight.abs() < 0.02)).any()  # fine-tuning, without the penalty


def test_whole_layers_of_branches_may_go() -> None:
    torch.manual_seed(0)
    model = Residual(4).double()
    model.get_parameter("block1.3.weight").data.mul_(0.01)
    model.get_parameter("block1.4.weight").data.zero_()  # or BatchNorm would make its gradient a hundred times as large
    pruner = pruner_of(model, "ssl:units=depth,strength=0.5,threshold=0.05", last=8)
    list(trained(model, pruner, torch.optim.SGD(model.parameters(), 1e-3), 9))
    inside = {"block1.0.weight", "block1.3.weight", "block2.0.weight", "block2.3.weight"}
    gone = {key for key, mask in pruner.masks.items() if not mask.any()}
    assert "block1.3.weight" in gone <= inside
    assert all(mask.all() for key, mask in pruner.masks.items() if key not in gone)


def test_lebedevs_quantile_grows_to_the_target_by_the_norms_of_columns() -> None:
    torch.manual_seed(0)
    model = Net(4).double()
    pruner = pruner_of(model, "lebedev:every=3,strength=0.01", last=9, target=0.6)
    weight, dead = model.conv2.weight, []
    columns = weight[0].numel()
    for step in trained(model, pruner, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), 10):
        mask = pruner.masks["conv2.weight"]
        assert torch.equal(mask, mask[:1].expand_as(mask))
        if step % 3 == 0 and step <= 9:
            norms = weight.detach().norm(dim=0)
            assert float(norms[mask[0]].min()) > 0
            dead.append(columns - int(mask[0].sum()))
    assert dead == [math.ceil(columns * 0.6 * share / 3 - 1e-9) for share in (1, 2, 3)]
    assert "fc.weight" not in pruner.masks


def test_the_proximal_step_is_that_of_apg_in_nesterov_form() -> None:
    """Huang and Wang (2018), section 3.3, in the form that methods.md of the design gives, number by number."""
    rate, strength, momentum = 0.1, 0.5, 0.9
    scales, velocities = [1.0, 0.06, 0.3, 0.02], [0.0, -0.02, 0.5, -0.4]
    gradients = [0.4, 0.3, -2.0, 0.1]
    expected = []
    for scale, velocity, gradient in zip(scales, velocities, gradients, strict=True):
        z = scale - rate * gradient
        z = math.copysign(max(abs(z) - rate * strength, 0.0), z)
        v = z - scale + momentum * velocity
        expected.append((max(z + momentum * v, 0.0), v))
    found = accelerated_step(
        *(torch.tensor(x, dtype=torch.float64) for x in (scales, gradients, velocities)),
        rate=rate, strength=strength, momentum=momentum,
    )  # fmt: skip
    assert found[0].tolist() == pytest.approx([scale for scale, _ in expected], abs=1e-15)
    assert found[1].tolist() == pytest.approx([v for _, v in expected], abs=1e-15)
    assert found[0][3] == 0


class Scaled(Residual):
    """With the scales of its branches as parameters of their own."""

    def __init__(self) -> None:
        super().__init__(4)
        self.scales = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.scales[0] * self.block1(x) + x)
        x = torch.relu(self.scales[1] * self.block2(x) + self.beside(x))
        return self.fc(x.mean((2, 3)))


def test_scales_that_are_no_parameters_train_as_if_they_were() -> None:
    torch.manual_seed(0)
    model, other = Residual(4).double(), Scaled().double()
    other.load_state_dict(model.state_dict(), strict=False)
    for module in (model.block1[4], other.block1[4]):
        module.bias.data.fill_(0.3)
    rate, strength, momentum = 0.05, 0.4, 0.8
    pruner = pruner_of(model, f"sss:strength={strength},momentum={momentum}", last=40)
    how = {"lr": rate, "momentum": 0.9, "weight_decay": 1e-3}
    optimizer = torch.optim.SGD(model.parameters(), **how)
    plain = torch.optim.SGD([p for name, p in other.named_parameters() if name != "scales"], **how)
    velocity, smallest = torch.zeros(2, dtype=torch.float64), []
    for step, (images, labels) in zip(trained(model, pruner, optimizer, 60), batches(60), strict=True):
        other.zero_grad()
        cross_entropy(other.train()(images), labels).backward()  # type: ignore[no-untyped-call]
        plain.step()
        if step <= 40:
            assert other.scales.grad is not None
            z = other.scales.data - rate * other.scales.grad
            z = z.sign() * (z.abs() - rate * strength).clamp_min(0)
            velocity = z - other.scales.data + momentum * velocity
            other.scales.data = (z + momentum * velocity).clamp_min(0)
        smallest.append(float(other.scales.detach().min()))
        x = next(batches(1, seed=9))[0]
        with torch.no_grad():
            torch.testing.assert_close(
                copy.deepcopy(model).eval()(x), copy.deepcopy(other).eval()(x), rtol=1e-7, atol=1e-9
            )
        for (_, scale), block in zip(enumerate(other.scales.tolist()), (1, 2), strict=True):
            mine, its = model.get_parameter(f"block{block}.4.bias"), other.get_parameter(f"block{block}.4.bias")
            torch.testing.assert_close(mine, scale * its, rtol=1e-7, atol=1e-12)
    assert smallest[-1] == 0 < smallest[3]
    dead = [f"block{n + 1}" for n, scale in enumerate(other.scales.tolist()) if scale == 0]
    gone = {key for key, mask in pruner.masks.items() if not mask.any()}
    assert gone == {f"{block}.{place}.weight" for block in dead for place in (0, 3)}


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("resnet20", 9, ("layer1.0.bn2", ("layer1.0.conv1", "layer1.0.conv2"))),
        ("resnet18", 8, ("layer1.0.bn2", ("layer1.0.conv1", "layer1.0.conv2"))),
        ("mobilenet_v2", 10, ("features.3.conv.3", tuple(f"features.3.conv.{n}" for n in ("0.0", "1.0", "2")))),
        ("squeezenet1_1", 0, None),
    ],
)  # fmt: skip
def test_residual_branches_are_found(name: str, count: int, first: tuple[str, tuple[str, ...]] | None) -> None:
    branches = residual_branches(build_model(name, num_classes=4))
    assert len(branches) == count
    assert first is None or (branches[0].last, branches[0].layers) == first
    if name == "resnet18":
        assert all("downsample" not in layer for branch in branches for layer in branch.layers)


@pytest.mark.parametrize("spec", ["slimming", "sss", "ssl:units=depth"])
def test_a_network_with_nothing_to_penalise_is_refused(spec: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())
    with pytest.raises(BadOption, match="the network has n"):
        pruner_of(model, spec)
