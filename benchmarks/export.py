"""Times exported networks beside sparse execution in process and ONNX Runtime, and weighs their files.

python benchmarks/export.py                      # all rows, into docs/results/export.json
python benchmarks/export.py --rows resnet50-ck80 --turns 60
python benchmarks/export.py --sizes              # bytes alone, into docs/results/export-sizes.json

Networks are those of benchmarks/inference.py: random weights, pruned as the method prunes. Each is exported by
`starfire export` for this machine; the library, the module in process (`sparse=True`, no dense engines) and ONNX
Runtime, which runs it dense, take turns with one image. Loading is measured in a process of its own: from opening the
library to the first answer, less one more answer.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from benchmarks._common import Results, median_ms
from benchmarks.inference import KINDS, pruned
from starfire_cli import load_model
from starfire_cli.formats.onnx_session import export_and_open
from starfire_cli.records.export import ExportedFiles
from starfire_cli.sparse import compiler, sparsify
from starfire_cli.workflows.export.request import ExportRequest
from starfire_cli.workflows.export.run import export_checkpoint

ROWS = {
    "resnet50-ck80": ("resnet50", 224, "ck", 0.8),
    "resnet18-ck80": ("resnet18", 224, "ck", 0.8),
    "mobilenet_v2-ck80": ("mobilenet_v2", 224, "ck", 0.8),
    "resnet20-ck80": ("resnet20", 32, "ck", 0.8),
}
NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
_FIRST = """
import ctypes, sys, time
import numpy as np
library, name, side, outputs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
pixels, logits = np.full((1, 3, side, side), 0.5, np.float32), np.zeros(outputs, np.float32)
begin = time.perf_counter()
loaded, network = ctypes.CDLL(library), ctypes.c_void_p()
assert loaded[name + "_create"](ctypes.byref(network), 1, None, ctypes.c_int64(0)) == 0
def run():
    address = ctypes.c_void_p(pixels.ctypes.data), ctypes.c_int64(1), ctypes.c_void_p(logits.ctypes.data)
    assert loaded[name + "_run"](network, *address) == 0
run()
first = time.perf_counter()
times = []
for _ in range(9):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
print(1000 * (first - begin - sorted(times)[4]))
"""


class Library:
    """An exported network, loaded into this process."""

    def __init__(self, path: Path, name: str, threads: int, outputs: int) -> None:
        self._loaded, self._network, self._name = ctypes.CDLL(str(path)), ctypes.c_void_p(), name
        assert self._loaded[f"{name}_create"](ctypes.byref(self._network), threads, None, ctypes.c_int64(0)) == 0
        self.logits = np.zeros((1, outputs), np.float32)

    def __call__(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        where = ctypes.c_void_p(pixels.ctypes.data), ctypes.c_int64(1), ctypes.c_void_p(self.logits.ctypes.data)
        assert self._loaded[f"{self._name}_run"](self._network, *where) == 0
        return self.logits


def measured(net: str, side: int, method: str, target: float, threads: int, turns: int) -> dict[str, Any]:
    """Sizes in bytes, medians in milliseconds."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.pt")
        sparsity = pruned(file, net, side, method, target)
        request = ExportRequest(checkpoint=file, name="net", threads=threads > 1, **NORM)
        *_, written = export_checkpoint(request)
        assert isinstance(written, ExportedFiles)
        library = Path(folder, "export", "libnet.so")
        pixels = torch.rand(1, 3, side, side)
        exported = Library(library, "net", threads, written.outputs)
        dense = load_model(file, **NORM)
        inside = sparsify(load_model(file, **NORM))
        onnx = export_and_open(lambda: dense, pixels, threads)
        ways: dict[str, Callable[[], object]] = {
            "exported": lambda: exported(pixels.numpy()),
            "sparse=True": lambda: inside(pixels),
            "onnxruntime": lambda: onnx(pixels),
        }
        taken = by_turns(ways, turns)
        apart = float(np.abs(exported(pixels.numpy()) - inside(pixels).numpy()).max())
        choices = [choice.how for choice in inside.choices((1, 3, side, side))]
        command = [sys.executable, "-c", _FIRST, str(library), "net", str(side), str(written.outputs)]
        starts = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(5)]
        return {
            "sparsity": round(sparsity, 4),
            "vectors": KINDS[compiler.lanes()],
            "threads": threads,
            "median_ms": {name: median_ms(times) for name, times in taken.items()},
            "least_ms": {name: round(1000 * min(times), 4) for name, times in taken.items()},
            "load_and_first_answer_less_one_ms": round(statistics.median(starts), 2),
            "library_bytes": library.stat().st_size,
            "held_in_process_bytes": _held(inside),
            "checkpoint_bytes": file.stat().st_size,
            "largest_difference_from_sparse": apart,
            "dense_layers_in_process": choices.count("dense"),
            "export_seconds": round(written.seconds, 1),
        }


def by_turns(ways: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """The seconds of each call of each way, in turns; threads that spin after a call come to rest before the next."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 3):
        for name, run in ways.items():
            time.sleep(0.02)
            run()
            begin = time.perf_counter()
            run()
            if turn >= 3:
                taken[name].append(time.perf_counter() - begin)
    return taken


def weighed(net: str, side: int, method: str, target: float) -> dict[str, Any]:
    """The bytes of the checkpoint, of what a process holds, and of the libraries for this machine and any x86-64."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.pt")
        sparsity = pruned(file, net, side, method, target)
        found: dict[str, Any] = {"sparsity": round(sparsity, 4), "checkpoint_bytes": file.stat().st_size}
        inside = sparsify(load_model(file, **NORM))
        inside(torch.rand(1, 3, side, side))
        found["held_in_process_bytes"] = _held(inside)
        for name in ("native", "x86-64"):
            request = ExportRequest(checkpoint=file, name="net", target=name, **NORM)
            *_, written = export_checkpoint(request)
            assert isinstance(written, ExportedFiles)
            found[f"{name}_library_bytes"] = Path(folder, "export", "libnet.so").stat().st_size
        return found


def _held(inside: Any) -> int:
    """The bytes of live weights, ordered for their loops: those that a process holds, and those of linear layers."""
    network, entry = inside._network, 8  # a live weight and where its input lies
    cached = [made for _, made in network.weights_cache._found.values()]
    linear = [layer.live.values for layer in network.folded.values() if layer.window is None]
    arrays = [array.nbytes for made in cached for array in (made.segments, made.offsets, made.weights)]
    return sum(arrays) + sum(entry * len(values) for values in linear)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or Path("docs/results", "export-sizes.json" if given.sizes else "export.json")
    torch.set_num_threads(given.threads)
    results = Results(out, torch.device("cpu"))
    for name in given.rows:
        if given.sizes:
            results.step(name, lambda name=name: weighed(*ROWS[name]))
            continue
        title = f"{name}, {given.threads} thread{'s' if given.threads > 1 else ''}"
        results.step(title, lambda name=name: measured(*ROWS[name], given.threads, given.turns))


if __name__ == "__main__":
    main()
