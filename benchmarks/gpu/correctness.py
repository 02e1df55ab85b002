"""Checks the GPU paths: masks equal to the CPU's bit for bit, nothing revives under AMP, a run resumes.

python benchmarks/gpu/correctness.py --device cuda --out docs/results/gpu-correctness.json
python benchmarks/gpu/correctness.py --device cpu --tiny --out /tmp/c.json      # the same, small, on a CPU
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from _common import Results, gpu_arguments

from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run
from starfire_cli.models import build_model
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Goal, Pruner, layers_of_model
from starfire_cli.pruning.kernels import KERNELS, MaskJob
from starfire_cli.pruning.masks import digest
from starfire_cli.pruning.schedule import Era
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest

PAIRS = (("window", "fine"), ("ck", "block"), ("intra", "two-tier"), ("inter:order=window-ck", "fine"))


def masks_equal(device: torch.device, model_name: str, names: list[str]) -> dict[str, dict[str, int]]:
    """Every method on a whole network over four refreshes, ties included, by these kernels on the device and by the
    reference on the CPU: layers whose masks, weights or momenta differ (0 is right).
    """
    places = {"reference": torch.device("cpu")} | dict.fromkeys(names, device)
    kernels = {name: KERNELS.build("torch" if name == "reference" else name) for name in places}
    differing: dict[str, dict[str, int]] = {name: {} for name in names}
    for method, fc in PAIRS:
        torch.manual_seed(0)
        net = build_model(model_name, num_classes=50)
        with torch.no_grad():  # coarse values, so that there are thousands of ties
            for parameter in net.parameters():
                parameter.copy_((parameter * 64).round() / 64)
        layers, parameters = layers_of_model(net)[0], dict(net.named_parameters())
        conv, linear = CONV_METHODS.build(method), LINEAR_METHODS.build(fc)
        sides = {}
        for name, place in places.items():
            weights = [parameters[layer.key].detach().clone().to(place) for layer in layers]
            weights = [w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w for w in weights]
            alive = [torch.ones_like(w, dtype=torch.bool) for w in weights]
            sides[name] = (weights, alive, [torch.ones_like(w) for w in weights])
        goals = [Goal(target=0.7, progress=progress) for progress in (0.3, 0.5, 0.7, 1.0)]
        rules = [linear if layer.kind == "linear" else conv for layer in layers]
        along = [[rule.budget(layer, goal) for rule, layer in zip(rules, layers, strict=True)] for goal in goals]
        for name, tensors in sides.items():
            jobs = []
            for layer, budget, weight, mask, momentum in zip(layers, along[0], *tensors, strict=True):
                assert budget is not None
                jobs.append(MaskJob(layer=layer, weight=weight, alive=mask, budget=budget, others=(momentum,)))
            standing = kernels[name].prepare(jobs)
            for budgets in along:
                standing.prune(budgets)
        for name in names:
            pairs = [zip(x, y, strict=True) for x, y in zip(sides["reference"], sides[name], strict=True)]
            same = [all(torch.equal(x, y.cpu()) for x, y in layer) for layer in zip(*pairs, strict=True)]
            differing[name][f"{method}/{fc}"] = same.count(False)
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


def trained(folder: Path, name: str, device: torch.device, *, stop: int | None = None, **options: object) -> Checkpoint:
    """The last checkpoint of a short run on digits; with `stop`, of one that was stopped there and taken up again."""
    common: dict[str, Any] = {"device": str(device), "epochs": 4, "era": "1:3", "target": 0.6, "method": "ck"}
    common["cuda_graphs"] = "off"  # but where the options ask for them
    list(train(TrainRequest(**common | options, out=folder, name=name, max_steps=stop)))
    run = Run(folder / name)
    if stop is not None:
        list(train(TrainRequest(resume=run.path)))
    return load(run.last)


def apart(a: Checkpoint, b: Checkpoint) -> dict[str, object]:
    gap = max(float((a.state[k].double() - b.state[k].double()).abs().max()) for k in a.state)
    same = digest(a.masks or {}) == digest(b.masks or {})
    revived = sum(int(b.state[k][~m].count_nonzero()) for k, m in (b.masks or {}).items())
    return {"masks equal": same, "largest difference of a weight": gap, "revived": revived}


def resumes(device: torch.device, options: dict[str, object]) -> dict[str, object]:
    """A run stopped in the middle of an epoch of the era and taken up again, against one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        whole = trained(Path(folder), "whole", device, **options)
        return apart(whole, trained(Path(folder), "parts", device, stop=30, **options))


def replayed(device: torch.device, options: dict[str, object]) -> dict[str, object]:
    """A run whose steps are CUDA graphs, against one whose are not (of a rate that float32 holds exactly)."""
    with tempfile.TemporaryDirectory() as folder:
        plain = trained(Path(folder), "plain", device, **options)
        return apart(plain, trained(Path(folder), "graphs", device, cuda_graphs="on", **options))


def main() -> None:
    args = gpu_arguments(__doc__)
    device = torch.device(args.device)
    results = Results(args.out, device)
    exact: dict[str, object] = {"limit_train": 700, "limit_val": 100, "deterministic": True}
    names = [name for name in KERNELS.names() if KERNELS.member(name).unsupported_reason(device) is None]
    results.attempt("masks equal", lambda: masks_equal(device, "resnet20" if args.tiny else "resnet50", names))
    for amp in (None, "bf16", *(["fp16"] if device.type == "cuda" else [])):
        results.attempt(f"revived, amp {amp}", lambda amp=amp: revived(device, amp, 6 if args.tiny else 30))
    results.attempt("resume", lambda: resumes(device, {**exact, "amp": False}))
    results.attempt(
        "resume, amp, Adam", lambda: resumes(device, {**exact, "amp": True, "optimizer": "adam", "lr": 1e-3})
    )
    if device.type == "cuda":
        for optimizer, lr in (("sgd", 2**-4), ("adam", 2**-10)):
            options = {
                **exact,
                "amp": False,
                "optimizer": optimizer,
                "lr": lr,
                "lr_schedule": "constant",
                "warmup": 0.0,
            }
            results.attempt(f"cuda graphs, {optimizer}", lambda options=options: replayed(device, options))
        robust: dict[str, object] = {"lr": 2**-5, "lr_schedule": "constant", "warmup": 0.0, "amp": False, **exact}
        for name, more in {
            "fgsm": {"adversarial": "fgsm:eps=8/255"},
            "pgd": {"adversarial": "pgd:eps=8/255,steps=2"},
            "compact state": {"compact_state": True, "optimizer": "adam", "lr": 2**-10},
            "compact state, clipping": {"compact_state": True, "clip_grad": 1.0},
        }.items():
            results.attempt(f"cuda graphs, {name}", lambda more=more: replayed(device, robust | more))
        graphs = {**exact, "amp": True, "cuda_graphs": "on"}
        results.attempt("resume, cuda graphs, amp", lambda: resumes(device, graphs))
        results.attempt(
            "resume, cuda graphs, EMA, clipping", lambda: resumes(device, {**graphs, "ema": 0.99, "clip_grad": 1.0})
        )
    if not args.tiny:
        results.attempt("resume, compiled", lambda: resumes(device, {**exact, "compile": True}))
    sys.exit(f"failed: {', '.join(results.failed)}" if results.failed else 0)


if __name__ == "__main__":
    main()
