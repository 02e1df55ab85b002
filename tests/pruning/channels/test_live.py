"""Removing channels from a network that trains: the same function, and the same training from there on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer

from starfire_cli.models import build_model
from starfire_cli.pruning import Masks
from starfire_cli.pruning.channels.live import align_state, plan_removal, remove, settle_norms
from starfire_cli.pruning.channels.recipe import apply_shrink, shrink_masks
from starfire_cli.workflows.train.optimizers import build_optimizer
from tests.helpers.dead_channels import chain, masked, plain_net, settle, thin_out

SIZE = 12
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


def images(count: int = 6, size: int = SIZE, seed: int = 5) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apart(one: nn.Module, two: nn.Module, x: Tensor, *, training: bool) -> float:
    """Largest difference of outputs over the largest output; the networks are left as they were."""
    with torch.no_grad():
        a, b = (copy.deepcopy(net).double().train(training)(x) for net in (one, two))
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize(
    "name",
    ["resnet20", "mobilenet_v2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet50", "vgg11_bn"))],
)
def test_a_cut_network_is_the_same_function_in_eval_and_in_training(name: str) -> None:
    torch.manual_seed(0)
    net = settle(build_model(name, num_classes=4)).double()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    masks, x = thin_out(net), images(size=32)
    unsettled = copy.deepcopy(net)
    remove([unsettled], plan_removal([unsettled], masks, example=x))
    assert apart(net, unsettled, x, training=False) < 1e-9
    before = copy.deepcopy(net)
    settle_norms(net, masks, example=x)
    assert apart(before, net, x, training=True) < 1e-9
    settled = copy.deepcopy(net)
    removal = plan_removal([net], masks, example=x)
    assert removal.difference < 1e-9
    remove([net], removal)
    for training in (False, True):
        assert apart(settled, net, x, training=training) < 1e-9
    assert sum(p.numel() for p in net.parameters()) < 0.95 * sum(p.numel() for p in before.parameters())
    assert plan_removal([net], shrink_masks(masks, removal.recipe), example=x).recipe == {}


def test_a_settled_norm_gives_beta_in_both_modes() -> None:
    net = settle(plain_net()).double()
    masks = masked(net, {"0": [1], "3": [2, 4]})
    settle_norms(net, masks, example=EXAMPLE)
    assert net[1].running_mean[1] == 0 and net[1].running_var[1] == 0  # its convolution has no bias
    assert torch.equal(net[4].running_mean[[2, 4]], net[3].bias[[2, 4]].detach())
    for training in (False, True):
        with torch.no_grad():
            maps = net[:5].train(training)(images())[:, 2]
        torch.testing.assert_close(maps, net[4].bias[2].detach().expand(maps.shape), rtol=1e-12, atol=0)


def union_net() -> nn.Sequential:
    """Three convolutions with padding and BatchNorm, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7), nn.ReLU(),
        nn.Conv2d(7, 5, 1), nn.BatchNorm2d(5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4),
    )  # fmt: skip


# Channels that nobody writes and nobody reads; and one that the third convolution reads, whose BatchNorm takes it over.
DEAD = {"0": [1, 4], "3": ([0, 2], slice(None)), "11": [3]}
READ = {"3": (slice(None), [1, 4]), "6": (slice(None), [2]), "13": (slice(None), [3])}


def dead_on_both_sides(net: nn.Module) -> Masks:
    written, read = masked(net, DEAD), masked(net, READ)
    return {key: written.get(key, read.get(key)) & read.get(key, written.get(key)) for key in {**written, **read}}


def steps(net: nn.Module, optimizer: Optimizer, masks: Mapping[str, Tensor], count: int, seed: int) -> Iterator[float]:
    """Train with masked gradients, as the pruner does."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.rand(8, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss = cross_entropy(net.train()(x), torch.randint(0, 4, (8,), generator=generator))
        loss.backward()  # type: ignore[no-untyped-call]
        for key, mask in masks.items():
            net.get_parameter(key).grad.mul_(mask)
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda p: Adam(p, 1e-2, weight_decay=1e-3),
        lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
        lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, fused=True),
    ],
    ids=["sgd", "adam", "rmsprop", "fused"],
)
def test_training_goes_on_as_if_nothing_had_been_cut(make: Callable[[Iterator[nn.Parameter]], Optimizer]) -> None:
    torch.manual_seed(1)
    full = union_net().double()
    masks = dead_on_both_sides(full)
    optimizer = make(full.parameters())
    list(steps(full, optimizer, masks, 4, seed=0))
    settle_norms(full, masks, example=EXAMPLE)
    small = copy.deepcopy(full)
    again = make(small.parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    removal = plan_removal([small], masks, example=EXAMPLE)
    remove([small], removal, again)
    few = shrink_masks(masks, removal.recipe)
    assert {name: len(cut["out"]) for name, cut in removal.recipe.items() if "out" in cut} == {
        "0": 4, "1": 4, "3": 5, "4": 5, "11": 5,
    }  # fmt: skip
    assert few.keys() == masks.keys() and all(mask.all() for mask in few.values())
    assert {id(p) for g in again.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    losses = [list(steps(net, o, m, 6, seed=3)) for net, o, m in ((full, optimizer, masks), (small, again, few))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert apart(full, small, images(), training=False) < 1e-8


def test_state_and_groups_are_those_of_the_parameters_that_stay() -> None:
    net = settle(chain(bias=False)).double()
    net[1].bias.data[:] = 2.0
    masks = masked(net, {"0": [1, 4]})
    how = {"weight_decay": 1e-4, "momentum": 0.9, "nesterov": False, "betas": (0.9, 0.999), "norm_weight_decay": 0.0}
    optimizer = build_optimizer("adam", net, lr=0.1, **how)
    list(steps(net, optimizer, {}, 1, seed=0))
    masked(net, {"0": [1, 4]})
    held = {key: dict(optimizer.state[p]) for key, p in net.named_parameters()}
    removal = plan_removal([net], masks, example=EXAMPLE)
    replaced = remove([net], removal, optimizer)
    align_state(optimizer)
    kept = [0, 2, 3, 5]
    assert removal.recipe["3"] == {"in": kept, "bias": True}
    state = {key: optimizer.state[p] for key, p in net.named_parameters() if key != "3.bias"}
    assert torch.equal(state["0.weight"]["exp_avg"], held["0.weight"]["exp_avg"][kept])
    assert torch.equal(state["1.bias"]["exp_avg_sq"], held["1.bias"]["exp_avg_sq"][kept])
    assert torch.equal(state["3.weight"]["exp_avg"], held["3.weight"]["exp_avg"][:, kept])
    assert state["7.weight"] == held["7.weight"] and float(state["0.weight"]["step"]) == 1
    assert len(replaced) == 5 and not any(old in optimizer.state for old in replaced)
    # What a resumed run builds has the same order, so that state finds its parameter by number.
    fresh = chain(bias=False).double()
    apply_shrink(fresh, removal.recipe)
    other = build_optimizer("adam", fresh, lr=0.1, **how)
    names = [{p: key for key, p in model.named_parameters()} for model in (net, fresh)]
    groups = [[[names[n][p] for p in g["params"]] for g in o.param_groups] for n, o in enumerate((optimizer, other))]
    assert groups[0] == groups[1] and "3.bias" in groups[0][1]


def test_the_moving_average_is_cut_alike_and_keeps_its_own_constants() -> None:
    torch.manual_seed(0)
    net = settle(plain_net(padding=1)).double()
    net[1].bias.data[:] = -40.0  # after ReLU: 0, which may go in front of zero padding
    masks = masked(net, {"0": [1, 3], "3": [2]})
    average = copy.deepcopy(net)
    average[1].bias.data[3] = 40.0
    average[4].bias.data[2] += 0.5
    before = [copy.deepcopy(each) for each in (net, average)]
    alone = plan_removal([net], masks, example=EXAMPLE)
    assert alone.recipe["0"]["out"] == [0, 2, 4, 5]
    removal = plan_removal([net, average], masks, example=EXAMPLE)
    assert removal.recipe["0"]["out"] == [0, 2, 3, 4, 5] and removal.recipe["3"]["out"] == [0, 1, 3, 4]
    remove([net, average], removal)
    for old, new in zip(before, (net, average), strict=True):
        assert apart(old, new, images(), training=False) < 1e-9
    assert not torch.equal(net[8].bias, average[8].bias)  # the constants differed


def test_strides_are_those_of_a_fresh_network_of_that_size() -> None:
    net = build_model("resnet18", num_classes=4).to(memory_format=torch.channels_last)
    masks = thin_out(net)
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for key, mask in masks.items():
        net.get_parameter(key).data.masked_fill_(~mask, 0)
    removal = plan_removal([net], masks, example=torch.zeros(1, 3, 32, 32))
    remove([net], removal, optimizer)
    net.to(memory_format=torch.channels_last)
    align_state(optimizer)
    fresh = build_model("resnet18", num_classes=4)
    apply_shrink(fresh, removal.recipe)
    fresh.to(memory_format=torch.channels_last)
    for mine, other in zip(net.parameters(), fresh.parameters(), strict=True):
        assert mine.shape == other.shape and mine.stride() == other.stride()
        assert optimizer.state[mine]["momentum_buffer"].stride() == mine.stride()
