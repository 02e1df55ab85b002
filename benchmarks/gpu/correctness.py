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
from starfire_cli.pruning.masks import digest
from starfire_cli.workflows.request import TrainRequest
from starfire_cli.workflows.train import train


def masks_equal(device: torch.device, model_name: str) -> dict[str, int]:
    """Every method on a whole network at several thresholds, ties included: layers whose masks differ (0 is right)."""
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
            differ = 0
            for layer in layers_of_model(net)[0]:
                weight = dict(net.named_parameters())[layer.key].detach()
                pruning = LINEAR_METHODS.build(fc) if layer.kind == "linear" else CONV_METHODS.build(method)
                alive = torch.ones_like(weight, dtype=torch.bool)
                for progress in (0.3, 0.7, 1.0):
                    budget = pruning.budget(layer, Goal(target=0.7, progress=progress))
                    if budget is None:
                        continue
                    there = weight.to(device)
                    if there.ndim == 4:
                        there = there.contiguous(memory_format=torch.channels_last)
                    new = pruning.mask(layer, weight, alive, budget)
                    differ += not torch.equal(new, pruning.mask(layer, there, alive.to(device), budget).cpu())
                    alive = new
            differing[f"{method}/{fc}"] = differ
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
    results.step("masks equal", lambda: masks_equal(device, "resnet20" if args.tiny else "resnet50"))
    for amp in (None, "bf16", *(["fp16"] if device.type == "cuda" else [])):
        results.step(f"revived, amp {amp}", lambda amp=amp: revived(device, amp, 6 if args.tiny else 60))
    results.step("resume", lambda: resumes(device, {**small, "deterministic": True}))
    results.step("resume, amp", lambda: resumes(device, {**small, "amp": True}))
    if not args.tiny:
        results.step("resume, compiled", lambda: resumes(device, {**small, "compile": True}))


if __name__ == "__main__":
    main()
