"""Once zero, always zero: whole trainings under every optimizer, checked after every step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era
from tests.helpers.pruner_training import LAST, STEPS, Training, batches, make_pruner, network

OPTIMIZERS: dict[str, tuple[Callable[..., optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, {"lr": 0.05}),
    "momentum": (optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "nesterov": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "dampened-foreach": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "foreach": True}),
    "adam": (optim.Adam, {"lr": 0.01}),
    "amsgrad": (optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "adam-fused": (optim.Adam, {"lr": 0.01, "fused": True}),
    "adamw": (optim.AdamW, {"lr": 0.01}),
    "nadam": (optim.NAdam, {"lr": 0.01}),
    "radam": (optim.RAdam, {"lr": 0.01}),
    "adamax": (optim.Adamax, {"lr": 0.01}),
    "adagrad": (optim.Adagrad, {"lr": 0.05, "initial_accumulator_value": 0.1}),
    "adadelta": (optim.Adadelta, {"lr": 1.0}),
    "rmsprop": (optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True}),
}


def maker(name: str, weight_decay: float = 0.0) -> Callable[[Iterator[nn.Parameter]], optim.Optimizer]:
    make, options = OPTIMIZERS[name]
    return lambda parameters: make(parameters, **options, weight_decay=weight_decay)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_comes_back_under_any_optimizer(name: str, weight_decay: float) -> None:
    training = Training.start(maker(name, weight_decay), conv="intra", fc="two-tier", ema=True)
    start = {k: v.clone() for k, v in training.model.state_dict().items()}
    training.run(batches(STEPS))
    sparsity = 1 - sum(int(m.sum()) for m in training.pruner.masks.values()) / sum(
        m.numel() for m in training.pruner.masks.values()
    )
    assert sparsity > 0.6
    trained = training.model.state_dict()
    assert all(not torch.equal(start[k][m], trained[k][m]) for k, m in training.pruner.masks.items())


@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.parametrize(
    ("conv", "fc"),
    [(c, "fine") for c in CONV_METHODS.names()]
    + [("window:max_nonzero=2", f) for f in LINEAR_METHODS.names()]
    + [("inter:order=window-ck", "block:n=2")],
)
def test_nothing_comes_back_under_any_method(conv: str, fc: str, name: str) -> None:
    training = Training.start(maker(name, 0.05), conv=conv, fc=fc, channels_last=conv == "ck", clip=0.5)
    training.run(batches(STEPS))
    # The counts at the end are those of pruning a fresh network at the target, once.
    fresh = make_pruner(network(5), conv, fc, first_step=0, last_step=1)
    fresh.refresh(1.0)
    exact = {layer.key for layer in fresh.layers if layer.kind != "linear" or fc != "two-tier"}
    assert {k: z for k, z in training.pruner.zeros.items() if k in exact} == {
        k: z for k, z in fresh.zeros.items() if k in exact
    }


class NoisySGD(optim.SGD):
    """What the pruner cannot know: it moves weights whose gradient is zero."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(torch.randn_like(p), alpha=0.01)
                    self.state[p]["noise"] = torch.randn_like(p)


class NoisyOptimizer(optim.Optimizer):
    def __init__(self, parameters: Iterator[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad + torch.randn_like(p), alpha=0.01)


@pytest.mark.parametrize("make", [lambda p: NoisySGD(p, lr=0.1, momentum=0.9), NoisyOptimizer, optim.Rprop, optim.ASGD])
def test_an_optimizer_of_unknown_kind_is_enforced(make: Callable[[Iterator[nn.Parameter]], optim.Optimizer]) -> None:
    torch.manual_seed(3)
    training = Training.start(make, conv="ck")
    training.run(batches(STEPS))


def test_masking_gradients_alone_is_not_enough() -> None:
    """The paper's words, taken literally, bring weights back: the checks of this file can fail."""
    training = Training.start(maker("momentum"))
    training.pruner.attach(optim.SGD(nn.Linear(1, 1).parameters()))  # clears the state of some other optimizer
    with pytest.raises(AssertionError, match="came back"):
        training.run(batches(STEPS))


def test_clipping_by_norm_sees_live_entries_only() -> None:
    training = Training.start(maker("sgd"))
    training.run(batches(LAST))
    model, pruner = training.model, training.pruner
    (images, labels), *_ = batches(1, seed=9)
    training.optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    live = [
        (p.grad[pruner.masks[k]] if k in pruner.masks else p.grad.flatten())
        for k, p in model.named_parameters()
        if p.grad is not None
    ]
    everything = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    pruner.after_backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert norm.item() == pytest.approx(torch.cat(live).norm().item(), rel=1e-6)
    assert norm < everything * 0.999


def test_bfloat16_autocast_keeps_them_dead() -> None:
    training = Training.start(maker("adamw", 0.1), conv="intra", autocast=True)
    training.run(batches(STEPS))
    assert training.pruner.zeros["0.weight"] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_train_too(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    pruner = make_pruner(model, "ck")
    training = Training(model=model, pruner=pruner, optimizer=optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    pruner.attach(training.optimizer)
    training.run([(images.to(dtype), labels) for images, labels in batches(STEPS)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("everywhere", [False, True])
def test_weights_that_cannot_be_compared_stop_it_and_are_left_alone(bad: float, everywhere: bool) -> None:
    model = network()
    pruner = make_pruner(model, "ck")
    pruner.refresh(0.5)
    masks = {k: m.clone() for k, m in pruner.masks.items()}
    zeros = dict(pruner.zeros)
    with torch.no_grad():
        head = model.get_parameter("12.weight")
        head.fill_(bad) if everywhere else head[0, 0].fill_(bad)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(StarfireError, match=r"^12\.weight holds NaN or inf"):
        pruner.refresh(1.0)
    assert pruner.zeros["12.weight"] == zeros["12.weight"] and pruner.zeros != zeros
    assert torch.equal(masks["12.weight"], pruner.masks["12.weight"])
    assert torch.equal(torch.nan_to_num(state["12.weight"]), torch.nan_to_num(model.state_dict()["12.weight"]))
    others = {k: model.get_parameter(k) for k in pruner.masks if k != "12.weight"}  # are where they should be
    assert not any(w[~pruner.masks[k]].any() for k, w in others.items())
    assert pruner.zeros == {k: int((~m).sum()) for k, m in pruner.masks.items()}
    with pytest.raises(StarfireError, match=r"^12\.weight holds NaN or inf"):
        pruner.refresh(1.0)  # and the layer is still due


def test_large_finite_weights_are_no_nan() -> None:
    model = nn.Linear(64, 8)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(1e38, 3e38, 512).reshape(8, 64))  # their sum is inf
    pruner = make_pruner(model)
    assert pruner.refresh(1.0)
    assert pruner.zeros == {"weight": 308}


def test_verify_names_the_layer_that_came_back() -> None:
    model = network()
    pruner = make_pruner(model)
    pruner.refresh(1.0)
    pruner.verify()
    with torch.no_grad():
        model.get_parameter("3.weight").add_(1e-20)
    with pytest.raises(Mismatch, match=rf"^3\.weight: {pruner.zeros['3.weight']} pruned weights are not zero"):
        pruner.verify()


def test_dense_leaves_the_model_alone() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruner = make_pruner(model, "dense", "dense")
    assert not pruner.refresh(1.0)
    assert pruner.layers == []
    assert len(pruner.left_alone) == 6
    assert pruner.masks == {}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_zeros_at_birth_are_positive_even_of_inf() -> None:
    model = nn.Linear(4, 1, bias=False)
    layers, _ = layers_of_model(model)
    pruner = Pruner(
        model,
        layers,
        conv=CONV_METHODS.build("dense"),
        linear=LINEAR_METHODS.build("fine"),
        target=0.5,
        era=Era(first_step=0, last_step=1),
    )
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, -2.0, 3.0, -4.0]]))
    model.weight.grad = torch.tensor([[torch.inf, -1.0, 1.0, 1.0]])
    pruner.refresh(1.0)
    assert model.weight.tolist() == [[0.0, 0.0, 3.0, -4.0]]
    assert not model.weight.detach()[0, :2].signbit().any()
    assert model.weight.grad.tolist() == [[0.0, 0.0, 1.0, 1.0]]


def storages() -> dict[int, int]:
    """The bytes of all tensors that Python knows of, by where they lie."""
    gc.collect()  # what is garbage may go at any time, and its place be taken
    tensors = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}


@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_masks_take_a_byte_a_weight(kernels: str) -> None:
    """In the era and after it, masked gradients included."""
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.Flatten(), nn.Linear(64 * 9, 200))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 16, 5, 5)).sum().backward()

    step()
    optimizer.step()
    before = storages()
    pruner = make_pruner(model, target=0.5, kernels=kernels, first_step=0, last_step=4)
    pruner.attach(optimizer)
    for number in range(1, 6):
        step()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step(number)
        if number not in (1, 4, 5):  # all tensors are looked for, which takes time
            continue
        mine = before.keys() | {p.grad.untyped_storage().data_ptr() for p in model.parameters() if p.grad is not None}
        added = sum(size for place, size in storages().items() if place not in mine)
        weights = sum(layer.weights for layer in pruner.layers)
        assert weights <= added <= 1.02 * weights
