"""Run folders made up for the tests of `plot`: what `train` writes, with numbers that are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from starfire_cli.formats.checkpoint.meta import Meta, PruningMeta
from starfire_cli.records.inspect import Inspection, LayerFinding
from starfire_cli.records.plot import MaskPicture, NetworkPicture


def config_of(
    method: str = "ck",
    target: float = 0.6,
    *,
    start: float = 2.0,
    end: float = 4.0,
    seed: int = 0,
    epochs: int = 10,
    drops: tuple[float, ...] = (5.0, 8.0),
    **settings: Any,
) -> dict[str, Any]:
    """A config.json as `train` writes it, as far as `plot` reads it; `settings` go into the request."""
    dense = method == "dense"
    request = {"method": method, "target": target, "era": f"{start:g}:{end:g}", "ramp": "linear", "mask_every": 1}
    request |= {"seed": seed, "epochs": epochs, "lr": 0.1, "lr_drops": list(drops), "name": None, "out": "runs"}
    request |= {"model": "resnet20", "init": None, "device": "auto"} | settings
    return {
        "format": "starfire-run",
        "version": 1,
        "model": {"spec": request["model"], "num_classes": 10, "image_size": 16},
        "data": {"spec": "digits", "name": "digits", "image_size": 16},
        "pruning": {
            "method": method,
            "fc": "dense" if dense else "fine",
            "target": 0.0 if dense else target,
            "era": [start, end],
            "era_steps": [round(8 * start), round(8 * end)],
            "ramp": "linear",
            "keep_dense": [],
            "only": [],
        },
        "versions": {"starfire": "0.1.0"},
        "hardware": {"device": "cpu"},
        "command": f"starfire train --method {method} --target {target} --seed {seed}",
        "created": "2026-01-01T00:00:00+00:00",
        "seed": seed,
        "request": request,
        "layers": [],
        "epochs": epochs,
        "lr_drops": list(drops),
    }


def rows_of(config: dict[str, Any], best: float = 0.9, *, epochs: int | None = None) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl: accuracy rises to `best` in a straight line, sparsity as the era says."""
    pruning, planned = config["pruning"], config["epochs"]
    first, last = pruning["era"]
    rows = []
    for epoch in range(1, (planned if epochs is None else epochs) + 1):
        threshold = pruning["target"] * min(1.0, max(0.0, (epoch - first) / (last - first)))
        top1 = best * epoch / planned
        rows.append(
            {"epoch": epoch, "step": 8 * epoch, "threshold": threshold, "sparsity_prunable": threshold}
            | {"sparsity_total": 0.99 * threshold, "val_top1": top1, "val_top5": min(1.0, 1.1 * top1), "lr": 0.1}
        )
    return rows


def write_run(folder: Path, config: dict[str, Any] | None = None, rows: list[dict[str, Any]] | None = None) -> Path:
    """A run folder; without arguments a finished ck run."""
    config = config_of() if config is None else config
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    lines = rows_of(config) if rows is None else rows
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def write_attack(path: Path, title: str = "ck 0.6", attack: str = "fgsm", **more: Any) -> Path:
    """A result of `attack`, as it writes it."""
    points = [
        {"eps": eps, "top1": top1, "low": top1 - 0.02, "high": top1 + 0.02, "images": 100}
        for eps, top1 in ((0.0, 0.9), (0.01, 0.7), (0.05, 0.3))
    ]
    document = {"format": "starfire-attack", "version": 1, "checkpoint": str(path.parent / "best.pt"), "title": title}
    document |= {"attack": attack, "norm": "linf", "complete": True, "images": 100, "points": points, "warnings": []}
    document |= {"controls": {"noise": points}, "per_image": {}} | more
    path.write_text(json.dumps(document))
    return path


def layer(name: str, kind: str, shape: tuple[int, ...], zeros: int, per_window: tuple[int, ...] = ()) -> LayerFinding:
    """A layer as `inspect` finds it."""
    return LayerFinding(
        name=name,
        key=f"{name}.weight",
        kind=kind,
        shape=shape,
        groups=1,
        zeros=zeros,
        per_window=per_window,
        structure="ck",
        bytes_bound=100.0,
        macs=1000,
        macs_left=400,
    )


LAYERS = (
    layer("conv1", "window", (8, 3, 7, 7), 500),
    layer("layer1.0.conv1", "pointwise", (8, 8, 1, 1), 32),
    layer("layer1.0.conv2", "window", (8, 8, 3, 3), 288, (32, 0, 0, 0, 0, 0, 0, 0, 0, 32)),
    layer("layer1.0.downsample.0", "pointwise", (8, 8, 1, 1), 16),
    layer("fc", "linear", (10, 8), 20),
)


def network(
    path: Path = Path("runs/a/best.pt"), title: str = "ck 0.6", *, layers: tuple[LayerFinding, ...] = LAYERS
) -> NetworkPicture:
    """A checkpoint as `plot` looks into it, with the mask of one 3x3 layer in which every other kernel is dead."""
    mask = np.zeros((8, 8, 3, 3), bool)
    mask[::2] = True
    inspection = Inspection(
        path=path,
        format="starfire",
        layers=layers,
        parameters=2000,
        meta=Meta(pruning=PruningMeta(method="ck", target=0.6)),
        model="resnet20",
        input=(3, 16, 16),
        bytes_file=9000,
        bytes_dense=8000,
        bytes_packed=3000,
        bytes_bound=2900,
    )
    kept = mask.sum((2, 3))
    picture = MaskPicture(name="layer1.0.conv2", window=(3, 3), kept_KC=kept, corner_KCRS=mask)
    return NetworkPicture(title=title, method="ck", inspection=inspection, run=path.parent, masks=(picture,))
