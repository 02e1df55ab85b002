"""Times attack sweeps, and compares their verdicts, image by image, with those of two public attack libraries.

    python benchmarks/attack.py [--checkpoint FILE --data SPEC] [--images N] [--batch-size N] [--device D] [--out FILE]

Every contender attacks the same images with the same network and classifies what it made; they take turns, so that a
busy machine is busy for all. Times are medians over the turns, of the clock and of the processor (which on a busy
machine says more, and on a GPU nothing). torchattacks and foolbox are left out where they are not
installed (`pip install --no-deps torchattacks`; `pip install foolbox`). Without a checkpoint it is a fresh ResNet-20 on
random images, which says nothing about accuracy.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _common import where
from torch import Tensor, nn

from starfire_cli.attacks import ATTACKS
from starfire_cli.attacks._gradient import frozen
from starfire_cli.data import DataOptions, open_val
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.models import Normalized, build_model
from starfire_cli.networks.restore import restore_model
from starfire_cli.workflows.attack.sweep import ATTACK, CLEAN, AttackTally, Sweep

SIZES = [1 / 255, 2 / 255, 4 / 255, 8 / 255, 0.05, 0.1]
STEPS, STEP = 10, 2 / 255
Right = dict[float, Tensor]  # eps -> bool, (N,)


class InMemory:
    """Images and labels in batches, as a `Split` gives them."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int) -> None:
        self.images, self.labels, self.batch = images, labels, batch
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def steps(self) -> int:
        """Batches."""
        return -(-len(self) // self.batch)

    def batches(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """In order."""
        for first in range(start * self.batch, len(self), self.batch):
            yield self.images[first : first + self.batch], self.labels[first : first + self.batch]


def ours(model: nn.Module, split: InMemory, spec: str, sizes: list[float]) -> Right:
    """What `starfire attack --no-control` does for eps above 0, less the reading and writing of files."""
    clean = AttackTally(len(split), done=len(split))  # the others do not measure it either
    sweep = Sweep(
        model=model,
        split=split,
        attacks={ATTACK: ATTACKS.build(spec)},
        sizes=tuple(sizes),
        seed=0,
        loaded=split.batch,
        chunk=split.batch,
        autocast=contextlib.nullcontext,
        other=None,
        tallies={CLEAN: {0.0: clean}},
    )
    for _ in sweep.run():
        pass
    return {size: torch.from_numpy(sweep.tallies[ATTACK][size].right) for size in sizes}


def with_torchattacks(
    model: nn.Module, split: InMemory, make: Callable[[nn.Module, float], Any], sizes: list[float]
) -> Right:
    """One attack object for each eps, as its documentation shows."""
    found: dict[float, list[Tensor]] = {size: [] for size in sizes}
    for size in sizes:
        attack = make(model, size)
        for images, labels in split.batches(0):
            made = attack(images, labels)
            with torch.no_grad():
                found[size].append((model(made).argmax(1) == labels).cpu())
    return {size: torch.cat(parts) for size, parts in found.items()}


def with_foolbox(model: nn.Module, split: InMemory, library: Any, attack: Any, sizes: list[float]) -> Right:
    """All eps in one call; it says itself where it succeeded."""
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device=split.images.device)
    parts = []
    for images, labels in split.batches(0):
        _, _, success = attack(wrapped, images, labels, epsilons=sizes)
        parts.append(~success.cpu())
    whole = torch.cat(parts, 1)
    return dict(zip(sizes, whole, strict=True))


def contenders(model: nn.Module, split: InMemory, job: str) -> dict[str, Callable[[], Right]]:
    """By name; each run does the whole job."""
    fgsm = job == "fgsm"
    sizes = SIZES if fgsm else [8 / 255]
    spec = "fgsm" if fgsm else f"pgd:steps={STEPS},step_size={STEP},random_start=no"
    found: dict[str, Callable[[], Right]] = {"starfire": lambda: ours(model, split, spec, sizes)}
    with contextlib.suppress(ImportError):
        library = importlib.import_module("torchattacks")
        make = (
            (lambda net, eps: library.FGSM(net, eps=eps))
            if fgsm
            else (lambda net, eps: library.PGD(net, eps=eps, alpha=STEP, steps=STEPS, random_start=False))
        )
        found["torchattacks"] = lambda: with_torchattacks(model, split, make, sizes)
    with contextlib.suppress(ImportError):
        foolbox = importlib.import_module("foolbox")
        attack = (
            foolbox.attacks.LinfFastGradientAttack()
            if fgsm
            else foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
        )
        found["foolbox"] = lambda: with_foolbox(model, split, foolbox, attack, sizes)
    return found


def race(runs: dict[str, Callable[[], Right]], repeats: int, device: torch.device) -> dict[str, Any]:
    """They take turns; medians, ratios to ours, and on how many images a verdict differs from ours."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    worked: dict[str, list[float]] = {name: [] for name in runs}
    verdicts: dict[str, Right] = {}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began, busy = time.perf_counter(), time.process_time()
            verdicts[name] = run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first turn warms up
                taken[name].append(time.perf_counter() - began)
                worked[name].append(time.process_time() - busy)
    mine = verdicts["starfire"]
    medians = {name: statistics.median(times) for name, times in taken.items()}
    busy_medians = {name: statistics.median(times) for name, times in worked.items()}
    return {
        name: {
            "seconds": round(medians[name], 4),
            "times_ours": round(medians[name] / medians["starfire"], 3),
            "processor_seconds": round(busy_medians[name], 4),
            "processor_times_ours": round(busy_medians[name] / busy_medians["starfire"], 3),
            "spread": [round(min(taken[name]), 4), round(max(taken[name]), 4)],
            "correct": {f"{size:.6g}": int(right.sum()) for size, right in verdicts[name].items()},
            "verdicts_unlike_ours": sum(int((right != mine[size]).sum()) for size, right in verdicts[name].items()),
        }
        for name in runs
    }


def subject(arguments: argparse.Namespace, device: torch.device) -> tuple[nn.Module, InMemory, str]:
    """The network, the images, and what they are."""
    if arguments.checkpoint is None:
        torch.manual_seed(0)
        net = build_model("resnet20", num_classes=10)
        images = torch.rand(arguments.images, 3, 32, 32, device=device)
        model = Normalized(net, (0.5,) * 3, (0.25,) * 3).to(device).eval()
        labels = torch.randint(10, (len(images),), device=device)
        return model, InMemory(images, labels, arguments.batch_size), "fresh resnet20, random images"
    loaded = files.load(arguments.checkpoint)
    options = DataOptions(eval_batch_size=arguments.batch_size, device=device, limit_val=arguments.images)
    info, split = open_val(loaded.meta.data.values, arguments.data, options)
    network = restore_model(loaded, device, info)
    batches = list(split.batches(0))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return network.model, InMemory(images, labels, arguments.batch_size), f"{network.title} on {info.name}"


def main() -> None:
    """Print, and with --out also write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    model, split, what = subject(arguments, device)
    result: dict[str, Any] = {
        "what": what,
        "images": len(split),
        "batch_size": split.batch,
        "turns": arguments.repeats,
        "where": where(device),
    }
    with frozen(model):  # foolbox would leave a gradient in every parameter, and pay for it
        for job in ("fgsm", "pgd"):
            result[job] = race(contenders(model, split, job), arguments.repeats, device)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    result["fgsm_as_users_have_it"] = race(contenders(model, split, "fgsm"), arguments.repeats, device)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
