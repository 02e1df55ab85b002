"""What `inspect` found as JSON and CSV: the documented, stable keys (docs/inspect.md)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from starfire_cli.records.inspect import Comparison, Inspection, LayerDifference, LayerFinding
from starfire_cli.text import shape_text

CSV_COLUMNS = (
    "name",
    "kind",
    "shape",
    "groups",
    "weights",
    "zeros",
    "sparsity",
    "dead_kernels",
    "dead_outputs",
    "dead_inputs",
    "structure",
    "per_window",
    "macs",
    "macs_effective",
)


def inspection_json(found: Inspection, layers: Sequence[LayerFinding]) -> dict[str, Any]:
    """One checkpoint; `layers` are those to be listed, totals are of all."""
    macs = found.macs
    return {
        "path": str(found.path),
        "format": found.format,
        "model": found.model,
        "total": {
            "parameters": found.parameters,
            "prunable": found.prunable,
            "zeros": found.zeros,
            "sparsity_prunable": found.sparsity_prunable,
            "sparsity_total": found.sparsity_total,
            "input": list(found.input) if found.input else None,
            "macs": macs[0] if macs else None,
            "macs_effective": macs[1] if macs else None,
            "bytes_file": found.bytes_file,
            "bytes_dense": found.bytes_dense,
            "bytes_packed_estimate": found.bytes_packed,
            "bytes_entropy_bound": found.bytes_bound,
        },
        "layers": [_layer(layer) for layer in layers],
        "masks": {
            "present": found.masks_present,
            "digest": found.digest,
            "consistent": found.consistent,
            "digest_matches": found.digest_matches,
            "disagreements": [
                {"name": x.name, "dead_not_zero": x.revived, "alive_but_zero": x.idle}
                for x in found.layers
                if x.revived or x.idle
            ],
        },
        "meta": dict(found.meta.values),
        "left_out": [{"name": name, "reason": reason} for name, reason in found.left_out],
        "notes": list(found.notes),
    }


def comparison_json(found: Comparison, layers: Sequence[LayerDifference]) -> dict[str, Any]:
    """Two checkpoints; `layers` are those to be listed, totals are of all."""
    names = {layer.name for layer in layers}
    flips = found.predictions
    return {
        "a": inspection_json(found.a, [x for x in found.a.layers if x.name in names]),
        "b": inspection_json(found.b, [x for x in found.b.layers if x.name in names]),
        "total": {
            "sparsity_difference": found.b.sparsity_prunable - found.a.sparsity_prunable,
            "mask_iou": found.iou,
            "revived": found.revived,
            "died": found.died,
            "same_weights": found.same_weights,
        },
        "layers": [_difference(layer) for layer in layers],
        "unmatched": [{"name": name, "reason": reason} for name, reason in found.unmatched],
        "predictions": {k: v for k, v in asdict(flips).items() if k != "notes" or v} if flips else None,
    }


def to_text(document: dict[str, Any]) -> str:
    """JSON that every parser takes: NaN and infinity, which metadata may hold, become null."""
    return json.dumps(_finite(document), indent=2, default=str)


def layers_csv(layers: Sequence[LayerFinding]) -> str:
    """One line a layer, after one with the names of the columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for layer in layers:
        row = _layer(layer) | {
            "shape": shape_text(layer.shape),
            "per_window": " ".join(map(str, layer.per_window)),
        }
        writer.writerow(["" if row[column] is None else row[column] for column in CSV_COLUMNS])
    return out.getvalue()


def _layer(layer: LayerFinding) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "groups": layer.groups,
        "weights": layer.weights,
        "zeros": layer.zeros,
        "sparsity": layer.sparsity,
        "dead_kernels": layer.dead_kernels,
        "dead_outputs": layer.dead_outputs,
        "dead_inputs": layer.dead_inputs,
        "structure": layer.structure,
        "per_window": list(layer.per_window),
        "masked": layer.masked,
        "nonfinite": layer.nonfinite,
        "macs": layer.macs,
        "macs_effective": layer.macs_left,
    }


def differences_csv(layers: Sequence[LayerDifference]) -> str:
    """As `layers_csv`, of two checkpoints."""
    out = io.StringIO()
    columns = ("name", "shape", "sparsity_a", "sparsity_b", "sparsity_difference", "mask_iou", "revived", "died")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for layer in layers:
        row = _difference(layer) | {"shape": shape_text(layer.shape)}
        writer.writerow([row[column] for column in columns])
    return out.getvalue()


def _difference(layer: LayerDifference) -> dict[str, Any]:
    return {
        "name": layer.name,
        "shape": list(layer.shape),
        "sparsity_a": layer.sparsity_a,
        "sparsity_b": layer.sparsity_b,
        "sparsity_difference": layer.sparsity_b - layer.sparsity_a,
        "mask_iou": layer.iou,
        "revived": layer.revived,
        "died": layer.died,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
