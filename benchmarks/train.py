"""How many images a second does training reach with pruning on, against torchvision's and timm's way of training?

    python benchmarks/train.py [--rows cifar,tiny] [--steps N] [--turns N] [--out FILE]

The images are made here (see benchmarks/input.py) and lie in class folders: 32 x 32 for ResNet-20, 64 x 64 for
ResNet50. Every contender trains the same network with SGD from these files, two workers where it uses any; ours is the
workflow behind `starfire train`, with masks evaluated after every step, in an era of a hundred such epochs. Peers
are loops as their reference scripts have them: loader, forward, loss, backward, step, accuracy and loss fetched at each
step (torchvision) or now and then (timm). Contenders take turns; a figure is the median over the turns of images a
second in the second epoch; the peers' clock starts with their first batch, since an epoch here is short and starting
workers would weigh too much. Each with and without channels_last, and with bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _common import Results
from _input_peers import Batches, batches
from input import make
from torch import nn

from starfire_cli.models import build_model
from starfire_cli.records import EpochRecord
from starfire_cli.workflows.request import TrainRequest
from starfire_cli.workflows.train import train

ROWS = {"cifar": ("resnet20", 32, 128, "crop-flip", 10), "tiny": ("resnet50", 64, 64, "rrc-flip", 10)}
EPOCHS = 2
ERA = 100  # epochs
LOOK = 50  # steps between looks at the loss, in timm's script


def ours(
    folder: Path, model: str, size: int, batch: int, crop: str, epochs: int, steps: int, **options: object
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
                max_steps=epochs * steps + 1,  # the run ends long before its era does
                optimizer="sgd",
                lr=0.01,
                out=Path(out),
                device="cpu",
                limit_val=batch,
                **options,  # type: ignore[arg-type]
            )
            rates = [r.images_per_second for r in train(request, frozenset(options)) if isinstance(r, EpochRecord)]
        return statistics.median(rates[1:])

    return run


def theirs(
    source: Batches, model: str, size: int, classes: int, epochs: int, *, channels_last: bool, amp: bool, look: int
) -> Callable[[], float]:
    """A reference loop over a peer's loader."""

    def run() -> float:
        torch.manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        net = build_model(model, num_classes=classes, image_size=size).to(memory_format=layout).train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        criterion, rates, done = nn.CrossEntropyLoss(), [], 0
        for _ in range(epochs):
            started, seen = 0.0, 0
            for images, labels in source():
                started = started or time.perf_counter()  # not the workers' start, which a long epoch hardly feels
                images = images.contiguous(memory_format=layout)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
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
            rates.append(seen / (time.perf_counter() - started))
        return statistics.median(rates[1:])

    return run


def row(name: str, steps: int, turns: int) -> dict[str, dict[str, float]]:
    """Medians of images a second of every contender, and how many times the fastest peer in the same precision."""
    model, size, batch, crop, classes = ROWS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, size, size, steps * batch)
        contenders: dict[str, Callable[[], float]] = {}
        for precision, amp in (("float32", False), ("bfloat16", True)):
            for method in ("dense", "window", "ck"):
                fc = "dense" if method == "dense" else "fine"
                contenders[f"{precision}: starfire {method}"] = ours(
                    folder, model, size, batch, crop, EPOCHS, steps, method=method, fc=fc, target=0.6, amp=amp
                )
            for peer, source in batches(folder / "train", crop=crop, size=size, batch=batch, workers=2).items():
                for channels_last in (False, True):
                    title = f"{precision}: {peer}{', channels_last' if channels_last else ''}"
                    look = LOOK if peer.startswith("timm") else 1
                    contenders[title] = theirs(
                        source, model, size, classes, EPOCHS, channels_last=channels_last, amp=amp, look=look
                    )
        rates: dict[str, list[float]] = {title: [] for title in contenders}
        for _ in range(turns):
            for title, run in contenders.items():
                rates[title].append(run())
                print(f"  {title}: {rates[title][-1]:.0f}", flush=True)
    found = {title: statistics.median(some) for title, some in rates.items()}
    best = {
        p: max(v for t, v in found.items() if t.startswith(p) and "starfire" not in t) for p in ("float32", "bfloat16")
    }
    return {
        title: {"images/s": round(rate, 1), "of the fastest peer": round(rate / best[title.partition(":")[0]], 3)}
        for title, rate in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="cifar,tiny")
    parser.add_argument("--steps", type=int, default=12, help="of an epoch")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("train.json"))
    args = parser.parse_args()
    results = Results(args.out, torch.device("cpu"))
    for name in args.rows.split(","):
        results.step(
            f"{name}: {ROWS[name][0]}, {ROWS[name][1]} px", lambda name=name: row(name, args.steps, args.turns)
        )


if __name__ == "__main__":
    main()
