"""Times sparse networks on this CPU beside the fastest engines that run them dense.

python benchmarks/inference.py             # all rows, into docs/results/inference-avx512.json, -avx2, as the machine is
python benchmarks/inference.py --rows resnet50-ck80 --threads 2

Networks have random weights (time does not depend on them), pruned as the method prunes: of the K kernels that read one
input channel the weakest go, in linear layers the smallest weights. Each row is `starfire bench` of such a network:
torch in both memory layouts, torch.compile, ONNX Runtime, OpenVINO and ours take turns, with the same float32 images.
STARFIRE_CPU=x86-64-v3 makes our loops those of a processor with AVX2, the other engines stay as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks._common import Results, prune_at_once
from starfire_cli.formats.checkpoint import file as checkpoint
from starfire_cli.models import build_model
from starfire_cli.records.bench import BatchTimings
from starfire_cli.sparse import compiler
from starfire_cli.workflows.bench.request import BenchRequest
from starfire_cli.workflows.bench.run import bench

KINDS = {16: "avx512", 8: "avx2", 4: "128-bit"}  # by floats in a vector

#       name                  network      side method    target batches
ROWS = [
    ("resnet50-ck80", "resnet50", 224, "ck", 0.8, "1,16"),
    ("resnet50-ck90", "resnet50", 224, "ck", 0.9, "1,16"),
    ("resnet20-ck80", "resnet20", 32, "ck", 0.8, "1,64"),
    ("resnet50-ck60", "resnet50", 224, "ck", 0.6, "1,16"),
    ("resnet50-window7of9", "resnet50", 224, "window", 0.7, "1"),
    ("resnet18-ck80", "resnet18", 224, "ck", 0.8, "1"),
    ("vgg16_bn-ck80", "vgg16_bn", 224, "ck", 0.8, "1"),
    ("mobilenet_v2-ck80", "mobilenet_v2", 224, "ck", 0.8, "1"),
]


def pruned(path: Path, net: str, side: int, method: str, target: float) -> float:
    """Write a checkpoint of a network pruned in one go; its sparsity over all weights that can be pruned."""
    torch.manual_seed(0)
    classes = 10 if side == 32 else 1000
    model = build_model(net, num_classes=classes, image_size=side)
    pruner = prune_at_once(model, method, target)
    meta = {"model": {"spec": net, "num_classes": classes, "image_size": side}}
    checkpoint.save(path, state=model.state_dict(), masks=pruner.masks, meta=meta)
    return sum(pruner.zeros.values()) / sum(layer.weights for layer in pruner.layers)


def measured(
    net: str, side: int, method: str, target: float, batches: str, given: argparse.Namespace
) -> dict[str, Any]:
    """Medians and ninetieth percentiles in milliseconds by batch, and what ours gains over the best dense one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.pt"
        sparsity = round(pruned(file, net, side, method, target), 4)
        found: dict[str, Any] = {"sparsity": sparsity, "vectors": KINDS[compiler.lanes()]}
        request = BenchRequest(checkpoint=file, batch=batches, threads=given.threads, seconds=given.seconds)
        for record in bench(request):
            if isinstance(record, BatchTimings):
                found[f"batch {record.batch}"] = told(record)
    return found


def told(record: BatchTimings) -> dict[str, Any]:
    """One batch size as plain values."""
    ran = [timing for timing in record.timings if timing.problem is None]
    return {
        "median_ms": {timing.label: round(1000 * timing.median, 2) for timing in ran},
        "p90_ms": {timing.label: round(1000 * timing.p90, 2) for timing in ran},
        "speedup": {t.label: round(record.speedup(t) or 0.0, 2) for t in ran if not t.sparse},
        "max_relative_difference": max(timing.difference for timing in ran if timing.difference is not None),
        "not_run": {timing.label: timing.problem for timing in record.timings if timing.problem is not None},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[row[0] for row in ROWS])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="for each way and batch")
    parser.add_argument("--out", type=Path, default=Path(f"docs/results/inference-{KINDS[compiler.lanes()]}.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results = Results(given.out, torch.device("cpu"))
    for name, *row in ROWS:
        if name in given.rows:
            results.step(name, lambda row=row: measured(*row, given))


if __name__ == "__main__":
    main()
