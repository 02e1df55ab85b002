"""Measures size and speed of packed ResNet50s, against a lower bound and other formats.

    python benchmarks/pack.py [--weights init|trained-like] [--rows ck80,...] [--checkpoint FILE ...] [--sizes]
                              [--out FILE.json]

Sizes are of files on disk; the bound is computed here, without the package's own code. "Unpack" is from the file (in
the page cache) to a state dict of dense tensors in memory, the best of --repeat; "pack" is from a state dict to a file
on disk, fsync and the reading back that starfire does included. `--sizes` times nothing, for a busy machine. Peers that
are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import where
from _pack_bound import State, bound
from _pack_ways import ways
from _resnet50 import resnet50

from starfire_cli.formats.checkpoint import file as checkpoint

ROWS = {
    "window49": ("window:max_nonzero=4", 5 / 9),
    "ck60": ("ck", 0.6),
    "ck80": ("ck", 0.8),
    "ck90": ("ck", 0.9),
}


def measure(
    state: State, masks: State, repeat: int, *, thorough: bool, sizes: bool, only: tuple[str, ...]
) -> dict[str, Any]:
    """All ways on one network, or those whose names begin as `only` says."""
    dense = sum(tensor.nbytes for tensor in state.values())
    least = bound(state, masks)
    live = sum(int(mask.sum()) for mask in masks.values())
    result: dict[str, Any] = {"dense_bytes": dense, "bound_bytes": round(least), "live_weights": live, "ways": {}}
    print(f"  dense {dense / 1e6:.2f} MB, bound {least / 1e6:.3f} MB, {live:,} live weights")
    for name, write, read in ways(state, masks, thorough=thorough):
        if not name.startswith(only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            started = time.perf_counter()
            write(path)
            packing = time.perf_counter() - started
            size = path.stat().st_size
            if sizes:
                result["ways"][name] = {"bytes": size, "of_bound": size / least}
                print(f"  {name:34} {size / 1e6:8.3f} MB  {size / least:6.3f} of the bound", flush=True)
                continue
            unpacking = min(timed(lambda read=read, path=path: read(path)) for _ in range(repeat))  # type: ignore[misc]
        row = {"bytes": size, "of_bound": size / least, "pack_seconds": packing, "unpack_seconds": unpacking}
        result["ways"][name] = row | {"unpack_gb_per_second": dense / unpacking / 1e9}
        print(
            f"  {name:34} {size / 1e6:8.3f} MB  {size / least:6.3f} of the bound  {dense / size:5.2f} x smaller  "
            f"pack {packing:6.2f} s  unpack {unpacking * 1e3:6.0f} ms = {dense / unpacking / 1e9:5.2f} GB/s",
            flush=True,
        )
    return result


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Read the options, run the rows, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", choices=("init", "trained-like", "both"), default="both")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], help="also measure this checkpoint")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--thorough", action="store_true", help="also zstd -19 of everything, a minute a row")
    parser.add_argument("--sizes", action="store_true", help="sizes alone, without times")
    parser.add_argument("--ways", default="", help="those alone whose names begin so, separated by commas")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # torch about its own sparse tensors
    results: dict[str, Any] = {"where": where(torch.device("cpu")), "rows": {}}
    only = {"thorough": given.thorough, "sizes": given.sizes, "only": tuple(given.ways.split(","))}
    kinds = ("init", "trained-like") if given.weights == "both" else (given.weights,)
    for row in filter(None, given.rows.split(",")):
        for weights in kinds:
            print(f"ResNet50, {row}, {weights} weights")
            results["rows"][f"{row} {weights}"] = measure(*resnet50(weights, *ROWS[row]), given.repeat, **only)
    for path in given.checkpoint:
        print(path)
        loaded = checkpoint.load(path)
        results["rows"][str(path)] = measure(loaded.state, loaded.masks or {}, given.repeat, **only)
    if given.out:
        given.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
