"""Measures what `--cuda-graphs auto` brings a training as `starfire train` runs it: plain, robust, with compact state.

    python benchmarks/gpu/graphs.py --device cuda --out docs/results/gpu-graphs.json
    python benchmarks/gpu/graphs.py --device cpu --tiny --out /tmp/o.json

ResNet50 on random images of 64 px, batch 64, bfloat16, masks after every step of an era of one epoch; images a second
after the era (median of the epochs but the first), memory that tensors took, and what the run said of its graphs. On a
CPU auto leaves graphs out, so that both columns are alike.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from _common import Results, gpu_arguments
from input import make

from starfire_cli.records.train import EpochRecord, Notice, TrainingPlan
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fgsm": {"adversarial": "fgsm:eps=8/255"},
    "pgd, 7 steps": {"adversarial": "pgd:eps=8/255,steps=7"},
    "compact state, adam": {"compact_state": True, "optimizer": "adam", "lr": 1e-3},
}


def measured(images: Path, device: torch.device, graphs: str, tiny: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Images a second, bytes, and notices of one run."""
    with tempfile.TemporaryDirectory() as out:
        request = TrainRequest(
            data=f"folder:{images}",
            model="resnet20" if tiny else "resnet50",
            image_size=16 if tiny else 64,
            augment="none",
            batch_size=8 if tiny else 64,
            epochs=3 if tiny else 6,
            era="0:1",
            target=0.8,
            method="ck",
            limit_val=8,
            cuda_graphs=graphs,
            device=str(device),
            out=Path(out),
            **{"optimizer": "sgd", "lr": 0.01} | options,
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        records = list(train(request, frozenset(options) | {"method", "target", "era", "epochs"}))
    epochs = [record for record in records if isinstance(record, EpochRecord)]
    settings = dict(next(record for record in records if isinstance(record, TrainingPlan)).settings)
    return {
        "images/s": round(statistics.median(one.images_per_second for one in epochs[1:]), 1),
        "loss": round(epochs[-1].train_loss, 4),
        "memory bytes": epochs[-1].memory_bytes,
        "graphs": settings.get("cuda-graphs", "no"),
        "notices": [record.text for record in records if isinstance(record, Notice)],
    }


def main() -> None:
    args = gpu_arguments(__doc__)
    device = torch.device(args.device)
    results = Results(args.out, device)
    with tempfile.TemporaryDirectory() as folder:
        side, count = (16, 40) if args.tiny else (64, 6400)
        make(Path(folder) / "images", side, side, count, different=min(count, 200))
        for name, options in WAYS.items():
            for graphs in ("off", "auto"):
                run = lambda g=graphs, o=options: measured(Path(folder) / "images", device, g, args.tiny, o)  # noqa: E731
                results.attempt(f"{name}, graphs {graphs}", run)
    sys.exit(f"failed: {', '.join(results.failed)}" if results.failed else 0)


if __name__ == "__main__":
    main()
