"""The rows and the document of a comparison, from the figures of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from starfire_cli import runtime
from starfire_cli.records.compare import CellFailed, CellFigures, CompareCell, MethodRow, PairedDifference
from starfire_cli.records.flops import COUNTING
from starfire_cli.workflows.compare.cells import CellGroup
from starfire_cli.workflows.compare.intervals import paired_difference
from starfire_cli.workflows.compare.memory import cores


def rows_of(
    groups: Sequence[CellGroup], figures: Mapping[CompareCell, CellFigures], eps: Sequence[str]
) -> tuple[MethodRow, ...]:
    """One row a group that has a trained cell, with its differences from dense."""
    rows = []
    for group in groups:
        own = {cell.seed: figures[cell] for cell in group.cells if cell in figures}
        if not own:
            continue
        dense = {cell.seed: figures[cell] for cell in group.dense if cell in figures}
        rows.append(
            MethodRow(
                title=group.first.title,
                method=group.first.method,
                target=group.first.target,
                figures=own,
                dense=dense,
                top1_difference=paired_difference(_top1(own), _top1(dense)),
                attack_differences={
                    label: paired_difference(_robust(own, label), _robust(dense, label)) for label in eps
                },
            )
        )
    return tuple(rows)


def document_of(
    *,
    command: str,
    settings: Mapping[str, Any],
    began: str | None,
    pilots: Mapping[str, Any] | None,
    groups: Sequence[CellGroup],
    figures: Mapping[CompareCell, CellFigures],
    rows: Sequence[MethodRow],
    eps: Sequence[str],
    failed: Sequence[CellFailed],
) -> dict[str, Any]:
    """The contents of compare.json (docs/compare.md), but for its format and version."""
    cells = dict.fromkeys(cell for group in groups for cell in group.cells)
    problems = {one.cell: one.problem for one in failed}
    return {
        "command": command,
        "began": began or datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
        "versions": runtime.versions(),
        "hardware": {"cpu": runtime.processor(), "cores": cores(), "gpu": _gpu()},
        "counting": COUNTING,
        **({"pilots": pilots} if pilots else {}),
        "rows": [_row(row, eps) for row in rows],
        "cells": [
            {
                "name": cell.name,
                "title": cell.title,
                "method": cell.method,
                "target": cell.target,
                "seed": cell.seed,
                "state": "done" if cell in figures else "failed" if cell in problems else "missing",
                "problem": problems.get(cell),
                "figures": figures.get(cell),
            }
            for cell in cells
        ],
    }


def _row(row: MethodRow, eps: Sequence[str]) -> dict[str, Any]:
    found = list(row.figures.values())
    latency = row.latency
    return {
        "title": row.title,
        "method": row.method,
        "target": row.target,
        "seeds": list(row.figures),
        "epochs": max(one.epochs for one in found),
        "top1": _spread([one.top1 for one in found]),
        "top1_best": _spread([one.top1_best for one in found]),
        "top1_minus_dense": _difference(row.top1_difference),
        **{
            name: row.mean(name)
            for name in ("sparsity_prunable", "sparsity_total", "training_flops", "inference_flops", "seconds")
        },
        "packed_bytes": row.mean("packed_bytes"),
        "latency_seconds": None if latency is None else {"dense": latency.dense, "sparse": latency.sparse},
        "latency_problem": None if latency is None else latency.problem,
        "latency_threads": None if latency is None else latency.threads,
        "attack": [
            {
                "eps": label,
                "top1": row.robust(label),
                "top1_minus_dense": _difference(row.attack_differences.get(label)),
            }
            for label in eps
            if row.robust(label) is not None
        ],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}


def _difference(found: PairedDifference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    half = found.half_width
    return {
        "mean": found.mean,
        "half_width": half,
        "low": None if half is None else found.mean - half,
        "high": None if half is None else found.mean + half,
        "seeds": found.seeds,
    }


def _top1(figures: Mapping[int, CellFigures]) -> dict[int, float]:
    return {seed: one.top1 for seed, one in figures.items()}


def _robust(figures: Mapping[int, CellFigures], label: str) -> dict[int, float]:
    found = {seed: one.robustness.at(label) for seed, one in figures.items() if one.robustness is not None}
    return {seed: top1 for seed, top1 in found.items() if top1 is not None}


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
