"""Profiles the loops of a sparse network layer by layer, on one core: GFLOP/s of live work beside the core's peak.

python benchmarks/layers.py                                  # ResNet50, ck 0.8, one image
python benchmarks/layers.py --net mobilenet_v2 --method ck --target 0.8 --out layers.json
STARFIRE_CPU=x86-64-v3 python benchmarks/layers.py           # the loops of a processor with AVX2

The network is pruned as in inference.py. Each layer's steps run again and again by themselves, so its weights and maps
are as near as their size lets them be; in a network they come from farther away. The peak is that of multiply-adds in
registers, measured in turns with the layers. `sums` and `near` are the tiling that was fastest (starfire_cli/sparse/
convolution.py), `KiB` are those of the input, the output, and the live weights with where they belong.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from benchmarks._common import Results
from benchmarks.inference import pruned
from starfire_cli import load_model
from starfire_cli.sparse import compiler
from starfire_cli.sparse import plan as planning
from starfire_cli.sparse.convolution import Place, Tiling, Work
from starfire_cli.sparse.emit import Code
from starfire_cli.sparse.loops import FIELDS
from starfire_cli.sparse.machine import Program, Step
from starfire_cli.sparse.pool import zeros

SUMS = 16  # enough multiply-adds under way for any processor
REPEATS = 15


def profile(net: str, side: int, method: str, target: float) -> dict[str, Any]:
    """Figures of every layer that a loop runs."""
    torch.set_num_threads(1)
    made: list[tuple[Work, str, Tiling, Place, Place, list[Step]]] = []
    steps = planning.steps

    def noted(work: Work, kind: Any, tiling: Tiling, source: Place, target: Place, **others: Any) -> list[Step]:
        found = steps(work, kind, tiling, source, target, **others)
        made.append((work, kind, tiling, source, target, found))
        return found

    planning.steps = noted
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.pt"
        pruned(file, net, side, method, target)
        model = load_model(file, sparse=True, mean=(0.5,) * 3, std=(0.25,) * 3)
    images = torch.rand(1, 3, side, side)
    model(images)
    planning.steps = steps
    plan, _ = model._plan(tuple(images.shape))
    passing, kept = plan._take(1)
    peak, flops = _peak()
    rows = []
    for work, kind, tiling, source, place, found in made:
        program = Program(found)
        run = _running(program, passing.data_ptr(), kept.data_ptr(), images.data_ptr())
        seconds, beside = _in_turns(run, peak)
        out, live = place.layout, work.live
        pixels = out.height * out.width
        entry = {"does": work.does, "loop": kind, "shape": list(live.shape), "stride": work.window.stride}
        entry |= {"pixels": [out.height, out.width], "sums": tiling.sums, "near": tiling.near, "ms": 1e3 * seconds}
        if work.does == "sum":
            rate, most = 2 * len(live.values) * pixels / seconds / 1e9, flops / beside / 1e9
            floats = source.channels * source.layout.plane + place.channels * out.plane
            entry |= {"GFLOP/s": rate, "of peak": rate / most, "KiB": (4 * floats + _held(kind, work)) / 1024}
        rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in entry.items()})
    return {"peak GFLOP/s": round(flops / beside / 1e9, 1), "lanes": compiler.lanes(), "layers": rows}


def _held(kind: str, work: Work) -> int:
    R, S = work.window.size
    return 4 * work.live.kernels * (R * S + 1) if kind == "kernels" else 8 * len(work.live.values)


def _peak() -> tuple[Callable[[], None], int]:
    """Multiply-adds in registers, and how many operations they are."""
    code, count = Code(FIELDS, compiler.lanes()), 100_000
    sums = [code.variable(code.vector, "zeroinitializer") for _ in range(SUMS)]
    scale, shift = (code.splat(code.load("float", code.pointer(code.field[name]))) for name in ("weights", "bias"))
    with code.loop("%begin", "%end"):
        for total in sums:
            total.set(code.call("fma", total.get(), scale, shift))
    for i, total in enumerate(sums):
        code.store(code.vector, total.get(), code.at(code.pointer(code.field["out"]), 4 * compiler.lanes() * i))
    values = {"weights": np.float32([0.9]), "bias": np.float32([0.1]), "out": np.zeros(SUMS * 16, np.float32)}
    memory = zeros(1, 16).data_ptr()
    program = Program([Step(code=code, values=values, tasks=count, grain=count)])
    return _running(program, memory, memory, 0), 2 * count * SUMS * compiler.lanes()


def _running(program: Program, passing: int, kept: int, image: int) -> Callable[[], None]:
    return lambda: program.run_one(passing, kept, image, 1)


def _in_turns(*runs: Callable[[], None]) -> list[float]:
    """The median seconds of each."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS):
        for run, own in zip(runs, taken, strict=True):
            started = time.perf_counter()
            run()
            own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--method", default="ck")
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--out", type=Path, default=Path("layers.json"))
    given = parser.parse_args()
    results = Results(given.out, torch.device("cpu"))
    name = f"{given.net}, {given.method} {given.target:g}, {given.side} px"
    results.step(name, lambda: profile(given.net, given.side, given.method, given.target))


if __name__ == "__main__":
    main()
