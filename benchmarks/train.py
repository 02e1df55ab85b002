"""Measures images a second of training with pruning, beside torchvision's and timm's way of training.

    python benchmarks/train.py [--rows cifar,tiny] [--steps N] [--turns N] [--out FILE]
    python benchmarks/train.py --device cuda --rows cifar,tiny,large --steps 150 --turns 1 --workers 14

The images are made here (see benchmarks/input.py) and lie in class folders: 32 x 32 for ResNet-20, 64 x 64 and (on
CUDA) 500 x 400 for ResNet50. Every contender trains the same network with SGD from these files; ours is the workflow
behind `starfire train`, with masks evaluated after every step, in an era of a hundred such epochs. Peers are loops as
their reference scripts have them: loader, forward, loss, backward, step, accuracy and loss fetched at each step
(torchvision) or now and then (timm). Contenders take turns; a figure is the median over the turns of images a second in
the second epoch; the peers' clock starts with their first batch, since an epoch here is short and starting workers
would weigh too much. On a CPU each with and without channels_last, in float32 and bfloat16; on CUDA, where all of them
use bfloat16 and channels_last and let cuDNN try its algorithms, ours also with `--cuda-graphs` and `--compile`.

Steps over live weights (`--sparse-compute`) are measured by sparse_training.py, whole runs by sparse_run.py.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _common import Results, wait
from _input_peers import Batches, batches
from input import make
from torch import nn

from starfire_cli.models import build_model
from starfire_cli.records.train import EpochRecord
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest

ROWS = {  # model, side, batch, crop, sides of the files
    "cifar": ("resnet20", 32, 128, "crop-flip", (32, 32)),
    "tiny": ("resnet50", 64, 64, "rrc-flip", (64, 64)),
    "large": ("resnet50", 224, 64, "rrc-flip", (400, 500)),
}
CLASSES = 10
DIFFERENT = 1000  # images; more are links to these
EPOCHS = 2
ERA = 100  # epochs
LOOK = 50  # steps between looks at the loss, in timm's script


def ours(
    folder: Path, model: str, size: int, batch: int, crop: str, steps: int, device: torch.device, **options: object
) -> Callable[[], float]:
    """`starfire train` for a few epochs; the median of their images a second, the first left out."""

    def run() -> float:
        with tempfile.TemporaryDirectory() as out:
            request = TrainRequest(
                data=f"folder:{folder}",
                model=model,
                image_size=size,
                augment=crop,
                batch_size=batch,
                epochs=ERA,
                era=f"0:{ERA}",
                max_steps=EPOCHS * steps + 1,  # the run ends long before its era does
                optimizer="sgd",
                lr=0.01,
                out=Path(out),
                device=str(device),
                limit_val=batch,
                **{"cuda_graphs": "off"} | options,  # type: ignore[arg-type]
            )
            rates = [r.images_per_second for r in train(request, frozenset(options)) if isinstance(r, EpochRecord)]
        return statistics.median(rates[1:])

    return run


def theirs(
    source: Batches, model: str, size: int, device: torch.device, *, channels_last: bool, amp: bool, look: int
) -> Callable[[], float]:
    """A reference loop over a peer's loader."""

    def run() -> float:
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        layout = torch.channels_last if channels_last else torch.contiguous_format
        net = build_model(model, num_classes=CLASSES, image_size=size).to(device, memory_format=layout).train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        criterion, rates, done = nn.CrossEntropyLoss(), [], 0
        for _ in range(EPOCHS):
            started, seen = 0.0, 0
            for images, labels in source():
                started = started or time.perf_counter()  # not the workers' start, which a long epoch hardly feels
                images = images.contiguous(memory_format=layout)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
                    output = net(images)
                    loss = criterion(output.float(), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
                if done % look == 0:
                    loss.item()
                    (output.argmax(1) == labels).float().mean().item()
                seen += len(labels)
            wait(device)
            rates.append(seen / (time.perf_counter() - started))
        return statistics.median(rates[1:])

    return run


def row(
    name: str, steps: int, turns: int, device: torch.device, workers: int, kept: Results
) -> dict[str, dict[str, float]]:
    """Medians of images a second of every contender, and how many times the fastest peer in the same precision.

    Each figure goes to `kept` as soon as it is there: a lent GPU may be taken away in the middle.
    """
    model, size, batch, crop, sides = ROWS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, *sides, steps * batch, DIFFERENT)
        contenders: dict[str, Callable[[], float]] = {}
        for precision in ("float32", "bfloat16") if device.type == "cpu" else ("bfloat16",):
            amp = precision == "bfloat16"
            for title, options in mine(device, name).items():
                contenders[f"{precision}: starfire {title}"] = ours(
                    folder, model, size, batch, crop, steps, device, target=0.6, amp=amp, workers=workers, **options
                )
            loaders = batches(folder / "train", crop=crop, size=size, batch=batch, workers=workers, device=device)
            for peer, source in loaders.items():
                for channels_last in (False, True) if device.type == "cpu" else (True,):
                    title = f"{precision}: {peer}{', channels_last' if channels_last else ''}"
                    look = LOOK if peer.startswith("timm") else 1
                    contenders[title] = theirs(
                        source, model, size, device, channels_last=channels_last, amp=amp, look=look
                    )
        rates: dict[str, list[float]] = {title: [] for title in contenders}
        for turn in range(turns):
            for title, run in contenders.items():
                rates[title].append(kept.step(f"{name}, turn {turn + 1}: {title}", lambda run=run: round(run(), 1)))
    found = {title: statistics.median(some) for title, some in rates.items()}
    best = {
        p: max((v for t, v in found.items() if t.startswith(p) and "starfire" not in t), default=0.0)
        for p in ("float32", "bfloat16")
    }
    return {
        title: {"images/s": round(rate, 1), "of the fastest peer": round(rate / best[title.partition(":")[0]], 3)}
        for title, rate in found.items()
    }


def mine(device: torch.device, name: str) -> dict[str, dict[str, object]]:
    """Our ways of training, by title: options of `starfire train`."""
    plain: dict[str, dict[str, object]] = {
        method: {"method": method, "fc": "dense" if method == "dense" else "fine"}
        for method in ("dense", "window", "ck")
    }
    if device.type == "cpu":
        return plain
    fast: dict[str, dict[str, object]] = {"compile": {"compile": True}}
    if name != "large":  # there the GPU is busy whoever launches
        fast = {"cuda-graphs": {"cuda_graphs": "on"}, "compile, cuda-graphs": {"compile": True, "cuda_graphs": "on"}}
    return plain | {f"window, {title}": plain["window"] | options for title, options in fast.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", default="cifar,tiny")
    parser.add_argument("--steps", type=int, default=12, help="of an epoch")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of whoever uses any")
    parser.add_argument("--out", type=Path, default=Path("train.json"))
    args = parser.parse_args()
    device = torch.device(args.device)
    results = Results(args.out, device)
    kept = Results(args.out.with_suffix(".turns.json"), device)
    for name in args.rows.split(","):
        results.step(
            f"{name}: {ROWS[name][0]}, {ROWS[name][1]} px",
            lambda name=name: row(name, args.steps, args.turns, device, args.workers, kept),
        )
    kept.path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
