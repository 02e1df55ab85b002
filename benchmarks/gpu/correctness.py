"""Are the GPU paths right? Masks equal to the CPU's bit for bit, nothing revives under AMP, a run resumes.

python benchmarks/gpu/correctness.py --device cuda --out docs/results/gpu-correctness.json
python benchmarks/gpu/correctness.py --device cpu --tiny --out /tmp/c.json      # the same, small, on a CPU
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from _common import Results

from starfire_cli.formats.checkpoint import load
from starfire_cli.formats.run import Run
from starfire_cli.models import build_model
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Goal, Pruner, layers_of_model
from starfire_cli.pruning.era import Era
from starfire_cli.pruning.kernels import KERNELS, Job
from starfire_cli.pruning.masks import digest
from starfire_cli.workflows.request import TrainRequest
from starfire_cli.workflows.train import train


def masks_equal(device: torch.device, model_name: str, kernels: str) -> dict[str, int]:
    """Every method on a whole network over three refreshes, ties included, by these kernels on the device and by the
    reference on the CPU: layers whose masks, weights or momenta differ (0 is right).
    """
    reference, tested = KERNELS.build("torch"), KERNELS.build(kernels)
    differing = {}
    for method in CONV_METHODS.names():
        for fc in LINEAR_METHODS.names():
            if "dense" in (method, fc):
                continue
            torch.manual_seed(0)
            net = build_model(model_name, num_classes=50)
            with torch.no_grad():  # coarse values, so that there are thousands of ties
                for parameter in net.parameters():
                    parameter.copy_((parameter * 64).round() / 64)
            layers, parameters = layers_of_model(net)[0], dict(net.named_parameters())
            sides = []
            for place in (torch.device("cpu"), device):
                weights = [parameters[layer.key].detach().clone().to(place) for layer in layers]
                weights = [w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w for w in weights]
                alive = [torch.ones_like(w, dtype=torch.bool) for w in weights]
                sides.append((weights, alive, [torch.ones_like(w) for w in weights]))
            for progress in (0.3, 0.7, 1.0):
                goal = Goal(target=0.7, progress=progress)
                for implementation, (weights, alive, momenta) in zip((reference, tested), sides, strict=True):
                    jobs = []
                    for layer, weight, mask, momentum in zip(layers, weights, alive, momenta, strict=True):
                        rule = LINEAR_METHODS.build(fc) if layer.kind == "linear" else CONV_METHODS.build(method)
                        budget = rule.budget(layer, goal)
                        assert budget is not None
                        seen = rule.seen(layer)  # type: ignore[union-attr]
                        jobs.append(Job(layer=seen, weight=weight, alive=mask, budget=budget, others=(momentum,)))
                    implementation.prune(jobs)
            differing[f"{method}/{fc}"] = sum(
                not all(torch.equal(x[i], y[i].cpu()) for x, y in zip(*sides, strict=True)) for i in range(len(layers))
            )
    return differing


def revived(device: torch.device, amp: str | None, steps: int) -> dict[str, int]:
    """Dead weights that were not zero after any of `steps` steps, under mixed precision, by optimizer (0 is right)."""
    counts = {}
    for name in ("SGD", "Adam", "AdamW"):
        torch.manual_seed(0)
        net = build_model("resnet20", num_classes=10).to(device)
        options = {"momentum": 0.9, "nesterov": True} if name == "SGD" else {}
        optimizer = getattr(torch.optim, name)(net.parameters(), lr=1e-2, weight_decay=1e-3, **options)
        layers, _ = layers_of_model(net)
        conv, linear = CONV_METHODS.build("intra"), LINEAR_METHODS.build("two-tier")
        era = Era(first_step=0, last_step=steps // 2)
        pruner = Pruner(net, layers, conv=conv, linear=linear, target=0.7, era=era)
        pruner.attach(optimizer)
        dtype = torch.float16 if amp == "fp16" else torch.bfloat16
        scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        bad = 0
        for step in range(1, steps + 1):
            images = torch.randn(32, 3, 16, 16, device=device)
            with torch.autocast(device.type, dtype=dtype, enabled=amp is not None):
                loss = torch.nn.functional.cross_entropy(net(images).float(), torch.randint(10, (32,), device=device))
            scaler.scale(loss).backward()
            pruner.after_backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            pruner.after_step(step)
            parameters = dict(net.named_parameters())
            bad += sum(int(parameters[k].detach()[~m].count_nonzero()) for k, m in pruner.masks.items())
        counts[name] = bad
    return counts


def resumes(device: torch.device, options: dict[str, object]) -> dict[str, object]:
    """A run stopped in the middle of an epoch of the era and taken up again, against one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        common = {"device": str(device), "epochs": 4, "era": "1:3", "target": 0.6, "method": "ck", **options}
        runs = []
        for name, stop in (("whole", None), ("parts", 30)):
            list(train(TrainRequest(**common, out=Path(folder), name=name, max_steps=stop)))
            run = Run(Path(folder) / name)
            if stop is not None:
                list(train(TrainRequest(resume=run.path)))
            runs.append(load(run.last))
        a, b = runs
        gap = max(float((a.state[k].double() - b.state[k].double()).abs().max()) for k in a.state)
        same = digest(a.masks or {}) == digest(b.masks or {})
        return {"masks equal": same, "largest difference of a weight": gap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    results = Results(args.out, device)
    small: dict[str, object] = {"limit_train": 700, "limit_val": 100}
    for kernels in (name for name in KERNELS.names() if KERNELS.member(name).why_not(device) is None):
        model = "resnet20" if args.tiny else "resnet50"
        results.step(
            f"masks equal, {kernels}", lambda kernels=kernels, model=model: masks_equal(device, model, kernels)
        )
    for amp in (None, "bf16", *(["fp16"] if device.type == "cuda" else [])):
        results.step(f"revived, amp {amp}", lambda amp=amp: revived(device, amp, 6 if args.tiny else 60))
    results.step("resume", lambda: resumes(device, {**small, "deterministic": True}))
    results.step("resume, amp", lambda: resumes(device, {**small, "amp": True}))
    if not args.tiny:
        results.step("resume, compiled", lambda: resumes(device, {**small, "compile": True}))


if __name__ == "__main__":
    main()
