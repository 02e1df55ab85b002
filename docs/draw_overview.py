"""Draws docs/pictures/overview.png: ResNet50 on Tiny-ImageNet, from docs/results/evidence-tiny-imagenet.json.

The curves and the layers' sparsities are the measured ones that the file holds; the drawing is `starfire plot --kind
overview`'s. `python docs/draw_overview.py` renews the picture.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from starfire_cli.formats.checkpoint.meta import Meta, PruningMeta  # noqa: E402
from starfire_cli.models import build_model  # noqa: E402
from starfire_cli.pruning import layers_of_model  # noqa: E402
from starfire_cli.records.inspect import Inspection, LayerFinding  # noqa: E402
from starfire_cli.records.plot import Material, NetworkPicture, RunHistory  # noqa: E402
from starfire_cli.report.plot.kinds import draw  # noqa: E402
from starfire_cli.report.plot.saving import save_figures  # noqa: E402

RUNS = {"dense-s0": ("dense", 0.0), "ck-t0.6-s0": ("ck", 0.6), "window-t0.6-s0": ("window:max_nonzero=2", 0.6)}
ERA = (0.0, 5.0)  # epochs: a quarter of these runs' 20, as the recipe has it
SHOWN = "window-t0.6-s0"  # whose layers are drawn


def history(name: str, result: dict[str, Any]) -> RunHistory:
    """The run as `plot` would read it from its folder."""
    method, target = RUNS[name]
    rows = tuple({"epoch": float(i), "val_top1": top1} for i, top1 in enumerate(result["curve"], 1))
    return RunHistory(
        path=Path(name),
        method=method,
        target=target,
        era=ERA if target else None,
        epochs=len(rows),
        seed=0,
        settings={"method": method, "target": target},
        rows=rows,
    )


def network(name: str, result: dict[str, Any]) -> NetworkPicture:
    """The checkpoint as `inspect` would find it, of what is drawn."""
    method, target = RUNS[name]
    layers = []
    for layer in layers_of_model(build_model("resnet50-v1", num_classes=200))[0]:
        zeros = round(result["layers"][layer.name] * layer.weights)
        layers.append(
            LayerFinding(
                name=layer.name,
                key=layer.key,
                kind=layer.kind,
                shape=layer.shape,
                groups=layer.groups,
                zeros=zeros,
            )
        )
    inspection = Inspection(
        path=Path(name) / "best.pt",
        format="starfire",
        layers=tuple(layers),
        meta=Meta(pruning=PruningMeta(method=method, target=target)),
        model="resnet50-v1",
        input=(3, 64, 64),
    )
    return NetworkPicture(title=f"{method} {target}", method=method, inspection=inspection, run=Path(name), masks=())


def main() -> None:
    """Draw it."""
    results = json.loads((DOCS / "results" / "evidence-tiny-imagenet.json").read_text(encoding="utf-8"))
    runs = tuple(history(name, results[name]) for name in RUNS)
    figure = draw("overview", Material(runs=runs, networks=(network(SHOWN, results[SHOWN]),)))
    for path in save_figures({"overview": figure}, DOCS / "pictures" / "overview.png", dpi=200):
        print(path)


if __name__ == "__main__":
    main()
