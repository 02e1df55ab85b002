"""Checks the paper's claims on real data: trains grids of runs, attacks and packs them, and keeps every figure.

python benchmarks/evidence.py digits                         # Table 1 on scikit-learn's digits, 5 seeds
python benchmarks/evidence.py cifar10 --data PATH            # CIFAR-10, ResNet-20, a short schedule
python benchmarks/evidence.py cifar10 --data PATH --only ck-t0.6     # the cells whose names begin so
python benchmarks/evidence.py digits --report                # no run: the tables, from what is in the JSON
python benchmarks/evidence.py tiny-imagenet --data PATH      # Tables 3 and 5, ResNet50, for a GPU
python benchmarks/evidence.py cifar10-40 --data PATH         # CIFAR-10 at 40 epochs, 3 seeds, for a GPU

Every run is a cell as of `starfire compare`, with starts and epochs of its own, and its `starfire train` command is
kept beside its figures. Stop this whenever you like: what is in the JSON is not done again, and a run that was cut off
is resumed. `--jobs 2` trains two at once, each with `--threads`;
`--options=--amp` gives all of them further options.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from threading import Lock
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks._common import where
from starfire_cli.commands.train_options import parse_train_options
from starfire_cli.formats.run import Run
from starfire_cli.records.compare import CellDone, CellFailed, CellFigures, CompareCell
from starfire_cli.runtime import versions
from starfire_cli.workflows.compare.cell import CellJob
from starfire_cli.workflows.compare.pool import run_pool
from starfire_cli.workflows.train.signals import Signals


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run.

    Args:
        run: what names its folder and its figures.
        options: of `starfire train`, beside the grid's own.
        dense: the cell that is attacked beside it; None for a cell that is not attacked.
    """

    run: CompareCell
    options: tuple[str, ...] = ()
    dense: str | None = None

    @property
    def name(self) -> str:
        """Of its folder and its figures."""
        return self.run.name

    @property
    def words(self) -> tuple[str, ...]:
        """All of its options of `starfire train`."""
        target = () if self.run.target is None else ("--target", f"{self.run.target:g}")
        return ("--method", self.run.method, *target, *self.options, "--seed", str(self.run.seed))


def dense_cell(seed: int) -> Cell:
    return Cell(run=CompareCell(method="dense", target=None, seed=seed))


def digits() -> Iterator[Cell]:
    """Methods x starts x targets, 5 seeds; robustness at 0.6 and 0.8 from the earlier start."""
    for seed in range(5):
        yield dense_cell(seed)
        for start in (3, 6):
            for target in (0.4, 0.6, 0.7, 0.8):
                for method in ("window", "ck", "intra", "inter"):
                    run = CompareCell(method=method, target=target, seed=seed, label=f"-e{start}")
                    attacked = f"dense-s{seed}" if start == 3 and target in (0.6, 0.8) else None
                    yield Cell(run=run, options=("--era", f"{start}:{start + 3}"), dense=attacked)


def cifar10() -> Iterator[Cell]:
    """In order of worth: the headline, the other methods at 0.6 and 0.8, starts, epochs, then more seeds."""

    def cell(method: str, target: float, seed: int = 0, label: str = "", *options: str) -> Cell:
        run = CompareCell(method=method, target=target, seed=seed, label=label)
        return Cell(run=run, options=options, dense=f"dense-s{seed}")

    yield from (dense_cell(0), cell("ck", 0.6), cell("window", 0.6))
    yield from (cell(method, 0.8) for method in ("ck", "window", "intra", "inter"))
    yield from (cell("intra", 0.6), cell("inter", 0.6))
    yield cell("ck", 0.8, 0, "-e0", "--era", "0:2.4")  # no dense start
    yield cell("ck", 0.8, 0, "-e4", "--era", "4:6.4")  # a long one
    yield cell("ck", 0.8, 0, "-x12", "--epochs", "12")  # extra epochs, the era as it was
    for seed in (1, 2):
        yield from (dense_cell(seed), cell("ck", 0.6, seed), cell("window", 0.6, seed))


def cifar10_long() -> Iterator[Cell]:
    """The methods at two targets, three seeds, the first seed first."""
    for seed in range(3):
        yield dense_cell(seed)
        for target in (0.6, 0.8):
            for method in ("ck", "window", "intra", "inter"):
                yield Cell(run=CompareCell(method=method, target=target, seed=seed), dense=f"dense-s{seed}")


def tiny_imagenet() -> Iterator[Cell]:
    """Table 5 in order of worth."""
    yield dense_cell(0)
    for target in (0.6, 0.8, 0.4, 0.2):
        for method in ("ck", "window"):
            yield Cell(run=CompareCell(method=method, target=target, seed=0), dense="dense-s0")


GRIDS = {
    "digits": (digits, "--data digits", "0,0.01,0.02,0.05,0.1"),
    "cifar10": (cifar10, "--data cifar10:{data} --recipe cifar10 --epochs 8 --era 1.6:4", "0,0.005,0.01,0.02,0.05"),
    "cifar10-40": (cifar10_long, "--data cifar10:{data} --recipe cifar10", "0,0.005,0.01,0.02,0.05"),
    "tiny-imagenet": (
        tiny_imagenet,
        "--data tiny-imagenet:{data} --recipe tiny-imagenet --image-size 64",
        "0,0.005,0.01,0.02,0.05",
    ),
}


class Grid:
    """A grid of runs, and the JSON that its figures grow in."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        cells, options, self.eps = GRIDS[name]
        self.cells = [cell for cell in cells() if cell.name.startswith(tuple(given.only))]
        self.options = shlex.split(options.format(data=given.data))
        self.shown = shlex.split(options.format(data="PATH"))
        self.extra = shlex.split(given.options)
        self.runs, self.file = given.runs / name, given.out / f"evidence-{name}.json"
        self.rows: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.threads, self.lock = given.threads, Lock()
        self.later, self.looking = ThreadPoolExecutor(given.jobs), list[Future[None]]()
        self.locks: defaultdict[str, Lock] = defaultdict(Lock)

    def run(self, jobs: int) -> None:
        """All cells: so many are trained at once, and what is trained is looked at while others train."""
        self.runs.mkdir(parents=True, exist_ok=True)
        os.environ["OMP_NUM_THREADS"] = str(self.threads)  # of the cells' processes
        by_name = {cell.name: cell for cell in self.cells}
        missing = [cell for cell in self.cells if "top1" not in self.rows.get(cell.name, {})]
        failed = False
        with self.later, Signals() as signals:
            for cell in self.cells:
                if cell not in missing:
                    self.told(cell)
            for record in run_pool([self.job(cell) for cell in missing], jobs, signals):
                if isinstance(record, CellDone):
                    cell = by_name[record.cell.name]
                    self.keep(cell, self.row(cell, record.figures))
                    self.told(cell)
                elif isinstance(record, CellFailed):
                    failed = True
                    print(f"{record.cell.name}: failed: {record.problem}", file=sys.stderr, flush=True)
        for done in self.looking:
            done.result()
        if signals.number or failed:
            raise SystemExit(128 + signals.number if signals.number else 1)

    def job(self, cell: Cell) -> CellJob:
        """What `starfire compare` does for a cell: train it, and pack the best network."""
        request, given = parse_train_options([*self.options, *cell.words, *self.extra])
        return CellJob(
            cell=cell.run,
            folder=self.runs,
            request=replace(request, out=self.runs, name=cell.name, command=self.command_of(cell)),
            given=given | {"out", "name"},
            checkpoint="best",
            eps=None,
            images=None,
            pack=True,
        )

    def command_of(self, cell: Cell) -> str:
        return shlex.join(["starfire", "train", *self.shown, *cell.words, *self.extra])

    def told(self, cell: Cell) -> None:
        """Say what came out, and have the rest done beside the next one."""
        row = self.rows[cell.name]
        print(f"{cell.name}: {row['top1']:.4f} at sparsity {row['sparsity_prunable']:.4f}", flush=True)
        waited = [c for c in self.cells if c.dense == cell.name and "top1" in self.rows.get(c.name, {})]
        self.looking += [self.later.submit(self.looked_at, each) for each in (cell, *waited)]

    def looked_at(self, cell: Cell) -> None:
        """Count the layers' zeros, and attack once the dense network is there, as far as that is not done yet."""
        row, run = self.rows[cell.name], self.runs / cell.name
        with self.locks[cell.name]:
            if "layers" not in row and run.exists():
                said = self.command("inspect", str(run), "--json")
                row["layers"] = {layer["name"]: round(layer["sparsity"], 4) for layer in said["layers"]}
                self.keep(cell, row)
            self.attacked(cell)

    def attacked(self, cell: Cell) -> None:
        """Accuracy under FGSM beside the dense network's on the same images."""
        row = self.rows.get(cell.name, {})
        if (
            cell.dense is None
            or "fgsm" in row
            or "top1" not in self.rows.get(cell.dense, {})
            or not all((self.runs / n / "best.pt").exists() for n in (cell.name, cell.dense))
        ):
            return
        against = ("--against", str(self.runs / cell.dense))
        said = self.command("attack", str(self.runs / cell.name), *against, "--eps", self.eps, "--json")
        row["fgsm"] = {
            "eps": [point["eps"] for point in said["points"]],
            "top1": [point["top1"] for point in said["points"]],
            "top1_dense": [point["top1"] for point in said["against"]["points"]],
            "difference_95": [[round(p[k], 4) for k in ("difference", "low", "high")] for p in said["pairs"]],
            "images": said["images"],
        }
        self.keep(cell, row)

    def row(self, cell: Cell, figures: CellFigures) -> dict[str, Any]:
        rates = [round(row["images_per_second"]) for row in Run(self.runs / cell.name).read_metrics()]
        return {
            "command": self.command_of(cell),
            "threads": self.threads,
            "top1": figures.curve[-1],  # of the last epoch: no choice was made on the images that are counted
            "top1_best": figures.top1_best,
            "sparsity_prunable": figures.sparsity_prunable,
            "sparsity_total": figures.sparsity_total,
            "training_flops": figures.training_flops,
            "inference_flops": figures.inference_flops,
            "seconds": round(figures.seconds, 1),
            "curve": [round(top1, 4) for top1 in figures.curve],
            "images_per_second": rates,
            "where": where(torch.device("cuda" if torch.cuda.is_available() else "cpu")) | versions(),
            "packed_bytes": figures.packed_bytes,
        }

    def command(self, *words: str) -> Any:
        env = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        call = [sys.executable, "-m", "starfire_cli", *words]
        root = Path(__file__).parent.parent
        env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
        done = subprocess.run(call, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shlex.join(words)}: exit {done.returncode}\n{done.stderr}")
        return json.loads(done.stdout)

    def keep(self, cell: Cell, row: dict[str, Any]) -> None:
        with self.lock:
            self.rows[cell.name] = row
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = self.file.with_suffix(".new")
            new.write_text(json.dumps(self.rows, indent=1) + "\n")
            new.replace(self.file)


def report(grid: Grid) -> Iterator[str]:
    """Markdown: one row for each cell but for its seed, mean (least to greatest) of the last epoch's accuracy.

    The interval is Student's, 95 %, of the differences from the dense run of the same seed; where there is but one
    seed, FGSM's is that of the difference on these images (see `starfire attack --against`), and the others have none.
    """
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for name, row in grid.rows.items():
        kind, _, seed = name.rpartition("-s")
        cells.setdefault(kind, {})[seed] = row
    dense = {seed: row["top1"] for seed, row in cells.get("dense", {}).items()}
    yield "| run | seeds | top-1, % | minus dense, points | sparsity | packed, kB |"
    yield "|---|---:|---:|---:|---:|---:|"
    for kind, rows in cells.items():
        top1 = [100 * row["top1"] for row in rows.values()]
        apart = [100 * (row["top1"] - dense[seed]) for seed, row in rows.items() if seed in dense]
        spread = f"{mean(top1):.2f}" + (f" ({min(top1):.2f} to {max(top1):.2f})" if len(top1) > 1 else "")
        first = next(iter(rows.values()))
        size = mean(row["packed_bytes"] for row in rows.values()) / 1000
        minus = "" if kind == "dense" else _interval(apart)
        yield f"| {kind} | {len(rows)} | {spread} | {minus} | {first['sparsity_prunable']:.4f} | {size:.0f} |"
    attacked = {kind: [r["fgsm"] for r in rows.values() if "fgsm" in r] for kind, rows in cells.items()}
    attacked = {kind: found for kind, found in attacked.items() if found}
    if not attacked:
        return
    eps = next(iter(attacked.values()))[0]["eps"]
    yield ""
    yield "| FGSM, minus dense, points | " + " | ".join(f"eps {e:g}" for e in eps) + " |"
    yield "|---|" + "---:|" * len(eps)
    for kind, found in attacked.items():
        apart_E = [[[100 * part for part in f["difference_95"][i]] for f in found] for i in range(len(eps))]
        columns = [
            _interval([d for d, _, _ in at]) if len(at) > 1 else "{:+.2f} ({:+.2f} to {:+.2f})".format(*at[0])
            for at in apart_E
        ]
        yield f"| {kind} ({len(found)}) | " + " | ".join(columns) + " |"


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.2f}" if values else ""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):+.2f} ± {half:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--data", default="")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of cells' names")
    parser.add_argument("--options", default="", help="more options of starfire train, for all cells")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--report", action="store_true", help="print tables of what is done")
    given = parser.parse_args()
    grid = Grid(given.grid, given)
    if given.report:
        print("\n".join(report(grid)))
        return
    grid.run(given.jobs)


if __name__ == "__main__":
    main()
