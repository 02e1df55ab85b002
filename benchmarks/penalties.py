"""Times the penalties of training methods on ResNet50, beside a training step.

    python benchmarks/penalties.py [--device D] [--threads N] [--turns N] [--out FILE]

What is added to each step: the gradient in closed form before the optimizer, and what is done to weights after it. A
training step is forward, backward and SGD with momentum at the batch and image size given. Figures are medians over the
turns, in processor time on a CPU, so that other load does not count.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks._common import Results, method_arguments, wait
from benchmarks._resnet50 import training_step
from starfire_cli.pruning import TRAINING_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era

METHODS = ("prunetrain:strength=1e-4", "ssl", "ssl:units=filter", "ssl:units=shape", "ssl:units=depth", "lebedev")
METHODS += ("slimming", "sss")
LENGTH = 10**6  # steps of the era: no evaluation of masks falls into it


def median(work: Callable[[], object], turns: int, device: torch.device) -> float:
    """Milliseconds of `work`."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken = []
    for _ in range(turns + 1):
        wait(device)
        started = clock()
        work()
        wait(device)
        taken.append(1000 * (clock() - started))
    return statistics.median(taken[1:])


def main() -> None:
    args = method_arguments(__doc__, METHODS, "penalties.json")
    device = args.device
    results = Results(args.out, device)
    model, train = training_step(device, args.batch, args.size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = median(train, args.turns, device)
    results.step(f"step, batch {args.batch}, {args.size} px", lambda: round(step, 1))
    for spec in args.methods:
        method = TRAINING_METHODS.build(spec)
        era = Era(first_step=0, last_step=LENGTH)
        layers, _ = layers_of_model(model)
        pruner = Pruner(model, layers, conv=method, linear=method, target=0.5, era=era)
        pruner.attach(optimizer)
        pruner.begin()

        def penalise(pruner: Pruner = pruner) -> None:
            pruner.after_backward()
            pruner.after_step(1)

        taken = median(penalise, args.turns, device)
        figures = {"ms": round(taken, 1), "% of step": round(100 * taken / step, 1)}
        results.step(spec, lambda figures=figures: figures)


if __name__ == "__main__":
    main()
