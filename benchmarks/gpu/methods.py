"""Checks the methods of the whole network on a GPU: the same masks as on a CPU, and what an evaluation takes.

python benchmarks/gpu/methods.py --device cuda --out docs/results/gpu-methods.json
python benchmarks/gpu/methods.py --device cpu --tiny --out /tmp/m.json      # the same, small, on a CPU

Weights and gradients are fed in, the same on both sides, so that masks can be compared bit for bit; then each method's
evaluation of ResNet50 is timed beside a training step (`benchmarks/methods.py` does that on a CPU).
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from _common import Results, gpu_arguments, median_ms, seconds
from methods import METHODS as TIMED
from methods import Contender

from starfire_cli.models import build_model
from starfire_cli.pruning import METHODS, TRAINING_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era

STEPS = 12


def masks_differing(spec: str, device: torch.device, model: str) -> dict[str, int]:
    """A run of fed gradients on the CPU and on the device: layers whose masks differ at its end (0 is right)."""
    sides = []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        net = build_model(model, num_classes=10).to(place, memory_format=torch.channels_last)
        method = TRAINING_METHODS.build(spec)
        era = Era(first_step=0, last_step=STEPS - 2)
        pruner = Pruner(net, layers_of_model(net)[0], conv=method, linear=method, target=0.8, era=era)
        draws = torch.Generator().manual_seed(1)

        def fill(net: torch.nn.Module = net, place: torch.device = place, draws: torch.Generator = draws) -> None:
            for parameter in net.parameters():
                gradient = torch.randn(parameter.shape, generator=draws)
                parameter.grad = torch.empty_like(parameter).copy_(gradient.to(place))

        pruner.begin(fill)
        for step in range(1, STEPS + 1):
            fill()
            if pruner.after_backward():  # a step of SGD without momentum: its sums are those of one multiplication
                with torch.no_grad():
                    for parameter in net.parameters():
                        assert parameter.grad is not None
                        parameter.sub_(parameter.grad.div(128))
            pruner.after_step(step)
            pruner.verify()
        sides.append({key: mask.cpu() for key, mask in pruner.masks.items()})
    return {"layers": len(sides[0]), "differing": sum(not torch.equal(m, sides[1][k]) for k, m in sides[0].items())}


def cost(spec: str, net: torch.nn.Module, gradients: list[torch.Tensor]) -> float:
    """Milliseconds of one evaluation; a plain step of the pruner is taken off."""
    weights = list(net.parameters())
    contender = Contender(spec, net)
    contender.evaluate(gradients, weights)
    return round(1000 * statistics.median(contender.evaluate(gradients, weights) for _ in range(3)), 2)


def main() -> None:
    args = gpu_arguments(__doc__)
    device = torch.device(args.device)
    results = Results(args.out, device)
    model = "resnet20" if args.tiny else "resnet50"
    names = [name for name in METHODS.taking("network").names() if name != "deepr"]  # whose noise is the device's own
    for spec in (*names, "gmp:pool=global", "dsr:unit=kernel", "granet:initial=0.5"):
        if TRAINING_METHODS.build(spec).axes().stages or TRAINING_METHODS.build(spec).axes().start:  # type: ignore[union-attr]
            results.attempt(f"masks as on the CPU: {spec}", lambda spec=spec: masks_differing(spec, device, "resnet20"))
    net = build_model(model, num_classes=10).to(device, memory_format=torch.channels_last)
    side = 32 if args.tiny else 64
    images, labels = torch.rand(64, 3, side, side, device=device), torch.randint(0, 10, (64,), device=device)

    def step() -> None:
        torch.nn.functional.cross_entropy(net(images), labels).backward()

    results.attempt("forward and backward, ms", lambda: median_ms(seconds(step, device=device, repeats=5)))
    if next(net.parameters()).grad is None:
        step()
    gradients = [w.grad.clone() for w in net.parameters() if w.grad is not None]
    for spec in TIMED:
        results.attempt(f"an evaluation, ms: {spec}", lambda spec=spec: cost(spec, net, gradients))
    sys.exit(bool(results.failed))


if __name__ == "__main__":
    main()
