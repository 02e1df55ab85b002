"""Times mask evaluation and gradient masking on ResNet50, beside other people's ways and a lower bound.

    python benchmarks/masks.py [--device D] [--threads N] [--turns N] [--out FILE]

All contenders work on the same weights (channels_last) and take turns, so that a busy machine is busy for all; times
are medians over the turns. "every layer" makes ours evaluate every layer anew, in an era of 120 steps; windows, which
lose a weight at few of its steps, are timed at such a step. Training evaluates a layer only where its whole-number
budget has changed, and what it pays, gradients included, is the row "a step in an era". The floor is the
time to read each weight once, at the speed of `tensor.sum()`. A "step" is forward, backward and SGD at the batch and
image size given.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _mask_peers as peers
import torch
from _common import Results, wait
from torch import Tensor

from starfire_cli.models import build_model
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Goal, Layer, Method, Pruner, layers_of_model
from starfire_cli.pruning.kernels import KERNELS, Kernels, MaskJob, PreparedLayers
from starfire_cli.pruning.schedule import Era

ERA = 1000  # steps; two thirds of an epoch of Tiny-ImageNet at batch 64, where the paper's era has ten epochs
STEPS = 12  # of an era of 120, from threshold 0.45 on: budgets rise as they do in the middle of one


@dataclass(frozen=True)
class Contender:
    """What is timed, and what is done before each time and is not."""

    run: Callable[[int], None]
    before: Callable[[], None]


@dataclass
class Weights:
    """The layers of a network, their weights, masks and momenta."""

    layers: list[Layer]
    weights: list[Tensor]
    alive: list[Tensor]
    momenta: list[Tensor]

    @classmethod
    def of(cls, model: str, device: torch.device, kinds: Sequence[str]) -> Weights:
        torch.manual_seed(0)
        net = build_model(model, num_classes=1000, image_size=64).to(device, memory_format=torch.channels_last)
        parameters = dict(net.named_parameters())
        layers = [layer for layer in layers_of_model(net)[0] if layer.kind in kinds]
        weights = [parameters[layer.key].detach() for layer in layers]
        alive = [torch.ones_like(w, dtype=torch.bool) for w in weights]
        return cls(layers, weights, alive, [torch.randn_like(w) for w in weights])

    def prepare(self, kernels: Kernels, rule: Method) -> PreparedLayers:
        """All layers made ready, as the pruner does it."""
        jobs = []
        for layer, weight, alive, momentum in zip(self.layers, self.weights, self.alive, self.momenta, strict=True):
            budget = rule.budget(layer, Goal(target=0.6, progress=0.5))
            assert budget is not None
            jobs.append(MaskJob(layer=layer, weight=weight, alive=alive, budget=budget, others=(momentum,)))
        return kernels.prepare(jobs)


def windows(name: str, model: str, device: torch.device) -> Contender:
    """Ours: a refresh in which every window of every layer loses one weight more, its fifth of nine."""
    held, rule, kernels = Weights.of(model, device, ["window"]), CONV_METHODS.build("window"), KERNELS.build(name)
    tensors = [*held.weights, *held.alive, *held.momenta]

    standing = held.prepare(kernels, rule)

    def prune(progress: float) -> None:
        standing.prune([rule.budget(layer, Goal(target=0.6, progress=progress)) for layer in held.layers])

    prune(0.7)  # 4 of 9
    before = [tensor.clone() for tensor in tensors]

    def restore() -> None:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)

    for _ in range(3):  # whatever is compiled or captured
        prune(0.9)
    return Contender(lambda number: prune(0.9), restore)


def refreshes(name: str, method: str, kinds: Sequence[str], model: str, device: torch.device) -> Callable[[int], None]:
    """Ours: the n-th refresh of an era, of every layer."""
    held, rule, kernels = Weights.of(model, device, kinds), CONV_METHODS.build(method), KERNELS.build(name)

    standing = held.prepare(kernels, rule)

    def run(number: int) -> None:
        goal = Goal(target=0.6, progress=0.75 + number / 120)
        standing.prune([rule.budget(layer, goal) for layer in held.layers])

    for number in (-3, -2, -1):  # to the threshold the era starts with, and whatever is compiled or captured
        run(number)
    return run


def others(
    mask: Callable[[Tensor, int], Tensor], method: str, kinds: Sequence[str], model: str, device: torch.device
) -> Callable[[int], None]:
    """Peers: a new mask of every layer, multiplied into the weight."""
    held, rule = Weights.of(model, device, kinds), CONV_METHODS.build(method)
    floats = [torch.ones_like(w) for w in held.weights]

    def run(number: int) -> None:
        goal = Goal(target=0.6, progress=0.75 + number / 120)
        for layer, weight, gate in zip(held.layers, held.weights, floats, strict=True):
            budget = rule.budget(layer, goal)
            assert budget is not None
            gate.copy_(mask(weight, budget[0].count))
            weight.mul_(gate)

    run(0)
    return run


def whole_layers(
    mask: Callable[[Tensor, float], Tensor], kinds: Sequence[str], model: str, device: torch.device
) -> Callable[[int], None]:
    """What peers offer: unstructured masks of each layer."""
    held = Weights.of(model, device, kinds)

    def run(number: int) -> None:
        for weight in held.weights:
            weight.mul_(mask(weight.contiguous(), 0.45))

    return run


def fine(name: str, model: str, device: torch.device) -> Callable[[int], None]:
    """Ours: the linear layer, weight by weight."""
    held, rule, kernels = Weights.of(model, device, ["linear"]), LINEAR_METHODS.build("fine"), KERNELS.build(name)
    standing = held.prepare(kernels, rule)

    def run(number: int) -> None:
        goal = Goal(target=0.6, progress=0.75 + number / 120)
        standing.prune([rule.budget(layer, goal) for layer in held.layers])

    for number in (-3, -2, -1):
        run(number)
    return run


def mask_gradients(name: str, model: str, device: torch.device) -> Callable[[int], None]:
    """Ours: what stays to be done at each step once the era is over."""
    held, kernels = Weights.of(model, device, ["window", "pointwise", "linear"]), KERNELS.build(name)
    alive = [torch.rand_like(w) > 0.6 for w in held.weights]
    return lambda number: kernels.mask_gradients(held.momenta, alive)


def reparametrised(model: str, device: torch.device) -> Callable[[int], None]:
    """torch.nn.utils.prune: a product at every forward pass and another at every backward pass."""
    held = Weights.of(model, device, ["window", "pointwise", "linear"])
    modules = [peers.Reparametrised(w, torch.rand_like(w) > 0.6) for w in held.weights]

    def run(number: int) -> None:
        for module, gradient in zip(modules, held.momenta, strict=True):
            module()
            torch.mul(gradient, module.mask)

    return run


def floor(kinds: Sequence[str], model: str, device: torch.device) -> Callable[[int], None]:
    """Each weight read once."""
    held = Weights.of(model, device, kinds)
    return lambda number: [w.sum() for w in held.weights] and None


def training_step(model: str, batch: int, size: int, device: torch.device) -> Callable[[int], None]:
    """Forward, backward, SGD."""
    net = build_model(model, num_classes=1000, image_size=size).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
    images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)

    def run(number: int) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = torch.nn.functional.cross_entropy(net(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def in_training(name: str, method: str, model: str, device: torch.device) -> tuple[torch.optim.Optimizer, Pruner]:
    """A network's optimizer, after a step, its gradients still there, and its pruner, of an era of `ERA` steps."""
    torch.manual_seed(0)
    net = build_model(model, num_classes=1000, image_size=64).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    pruner = Pruner(
        net,
        layers_of_model(net)[0],
        conv=CONV_METHODS.build(method),
        linear=LINEAR_METHODS.build("fine"),
        target=0.6,
        era=Era(first_step=0, last_step=ERA),
        kernels=name,
    )
    pruner.attach(optimizer)
    return optimizer, pruner


def era(name: str, method: str, model: str, device: torch.device) -> Callable[[int], None]:
    """Ours as training calls it: one step in the middle of an era of `ERA` steps, gradients and all layers included."""
    optimizer, pruner = in_training(name, method, model, device)
    gradients = [(weight, weight.grad) for group in optimizer.param_groups for weight in group["params"]]

    def run(number: int) -> None:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        pruner.after_backward()
        optimizer.zero_grad()  # as training does
        pruner.after_step(ERA // 2 + 3 + number)

    for number in (-3, -2, -1):
        run(number)

    return run


def by_turns(
    contenders: dict[str, Callable[[int], None] | Contender], turns: int, device: torch.device, *, mean: bool = False
) -> dict[str, float]:
    """Milliseconds of each, all taking turns: medians, or means where most turns have nothing to do."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(turns):
        for name, contender in contenders.items():
            run = contender
            if isinstance(contender, Contender):
                contender.before()
                run = contender.run
            wait(device)
            started = time.perf_counter()
            run(number)
            wait(device)
            taken[name].append(time.perf_counter() - started)
    middle = statistics.mean if mean else statistics.median
    return {name: round(1000 * middle(times), 2) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("masks.json"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, model = torch.device(args.device), args.model
    names = [name for name in KERNELS.names() if KERNELS.member(name).unsupported_reason(device) is None]
    results, convolutions, turns = Results(args.out, device), ["window", "pointwise"], args.turns

    def step() -> float:
        return by_turns({"step": training_step(model, args.batch, args.size, device)}, max(3, turns // 2), device)[
            "step"
        ]

    whole = results.step(f"step, batch {args.batch}, {args.size} px", step)

    def group(title: str, make: Callable[[], dict[str, Callable[[int], None] | Contender]], **options: Any) -> None:
        def run() -> dict[str, dict[str, float]]:
            times = by_turns(make(), **{"turns": turns, "device": device, **options})
            return {name: {"ms": ms, "% of step": round(100 * ms / whole, 2)} for name, ms in times.items()}

        results.step(title, run)

    group(
        "window, 3x3 and larger, every window loses one more",
        lambda: {
            "floor": floor(["window"], model, device),
            **{f"starfire {n}": windows(n, model, device) for n in names},
            "torch.topk": others(peers.topk_window, "window", ["window"], model, device),
            "sorted blocks": others(peers.sorted_blocks, "window", ["window"], model, device),
        },
    )
    group(
        "ck, every layer",
        lambda: {
            "floor": floor(convolutions, model, device),
            **{f"starfire {n}": refreshes(n, "ck", convolutions, model, device) for n in names},
            "torch.topk": others(peers.topk_kernels, "ck", convolutions, model, device),
        },
    )
    group(
        "intra, every layer",
        lambda: {f"starfire {n}": refreshes(n, "intra", convolutions, model, device) for n in names},
    )
    group(
        "unstructured, every layer (what peers offer)",
        lambda: {
            "torch.nn.utils.prune": whole_layers(peers.l1_unstructured, convolutions, model, device),
            "k-th value and compare": whole_layers(peers.threshold_of_layer, convolutions, model, device),
        },
    )
    group(
        f"a step in an era of {ERA} steps, all that pruning adds (mean)",
        lambda: {f"starfire {n} {m}": era(n, m, model, device) for m in ("window", "ck", "intra") for n in names},
        turns=8 * turns,
        mean=True,
    )
    group("linear, fine", lambda: {f"starfire {n}": fine(n, model, device) for n in names})
    group(
        "after the era, a step",
        lambda: {
            **{f"starfire {n}": mask_gradients(n, model, device) for n in names},
            "torch.nn.utils.prune": reparametrised(model, device),
        },
    )


if __name__ == "__main__":
    main()
