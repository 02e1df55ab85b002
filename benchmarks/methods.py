"""Times an evaluation of the masks of methods that see the whole network, on ResNet50, beside a training step.

    python benchmarks/methods.py [--device D] [--threads N] [--turns N] [--out FILE]

Each method evaluates in the middle of its era, at 90 % sparsity: what goes is found, what comes back is found, and
weights, momentum and masks are written. "% of training" shares that out over the steps between evaluations. A training
step is forward, backward and SGD with momentum at the batch and image size given. Figures are medians over the turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks._common import Results, median_ms, method_arguments, seconds, wait
from benchmarks._resnet50 import training_step
from starfire_cli.pruning import TRAINING_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era

METHODS = (
    "gmp",
    "gmp:pool=global",
    "set",
    "rigl",
    "dsr",
    "snfs",
    "granet",
    "srigl",
    "narang",
    "deep-compression",
    "deepr",
)
LENGTH = 4000  # steps of the era


class Contender:
    """One method in the middle of its era.

    Args:
        spec: its name.
        model: with gradients.
    """

    def __init__(self, spec: str, model: torch.nn.Module) -> None:
        method = TRAINING_METHODS.build(spec)
        era = Era(first_step=0, last_step=LENGTH)
        layers = layers_of_model(model)[0]
        self.pruner = Pruner(model, layers, conv=method, linear=method, target=0.9, era=era)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.pruner.attach(self.optimizer)
        self.pruner.begin()
        self.every = self.pruner.era.mask_every
        self.step = LENGTH // 2

    def evaluate(self, gradients: list[torch.Tensor], weights: list[torch.nn.Parameter]) -> float:
        """Seconds of one evaluation, and of a step without one taken off."""
        plain = self._turn(self.step + 1 if self.every > 1 else LENGTH + 1, gradients, weights)
        self.step += self.every
        return self._turn(self.step, gradients, weights) - plain

    def _turn(self, step: int, gradients: list[torch.Tensor], weights: list[torch.nn.Parameter]) -> float:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        self.pruner._step = step - 1
        wait(weights[0].device)
        started = time.perf_counter()
        steps = self.pruner.after_backward()
        wait(weights[0].device)
        taken = time.perf_counter() - started
        if steps:
            self.optimizer.step()
        self.optimizer.zero_grad()
        wait(weights[0].device)
        started = time.perf_counter()
        self.pruner.after_step(step)
        wait(weights[0].device)
        return taken + time.perf_counter() - started


def main() -> None:
    args = method_arguments(__doc__, METHODS, "methods.json")
    results = Results(args.out, args.device)
    model, train = training_step(args.device, args.batch, args.size)
    step = median_ms(seconds(train, device=args.device, repeats=args.turns))
    results.step(f"step, batch {args.batch}, {args.size} px", lambda: round(step, 1))
    weights = [w for w in model.parameters() if w.grad is not None]
    gradients = [w.grad.clone() for w in weights if w.grad is not None]
    start = [w.detach().clone() for w in weights]
    for spec in args.methods:
        for weight, before in zip(weights, start, strict=True):
            weight.data.copy_(before)
        contender = Contender(spec, model)
        contender.evaluate(gradients, weights)
        median = 1000 * statistics.median(contender.evaluate(gradients, weights) for _ in range(args.turns))
        figures = {
            "ms": round(median, 1),
            "% of step": round(100 * median / step, 1),
            "every": contender.every,
            "% of training": round(100 * median / step / contender.every, 2),
        }
        results.step(spec, lambda figures=figures: figures)


if __name__ == "__main__":
    main()
