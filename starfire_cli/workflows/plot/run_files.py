"""Plot records of run folders and result files, complete or not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from starfire_cli.damage import reading
from starfire_cli.errors import StarfireError
from starfire_cli.formats.robustness import read_robustness
from starfire_cli.formats.run import Run
from starfire_cli.labels import method_and_share
from starfire_cli.records.plot import CurvePoint, RobustCurve, RunHistory
from starfire_cli.text import printable

# Of a request, what says where and how fast a run runs, not what comes out.
_INDIFFERENT = frozenset(
    (
        "seed",
        "name",
        "out",
        "device",
        "workers",
        "eval_batch_size",
        "save_every",
        "compile",
        "cuda_graphs",
        "channels_last",
        "kernels",
        "logger",
    )
) | {"deterministic", "skip_corrupt", "eliminate", "recipe", "amp_dtype"}
# What means nothing where nothing is pruned; and what "pruning" says more exactly than the request.
_PRUNING = frozenset(("method", "fc", "target", "era", "ramp", "mask_every", "max_nonzero", "keep_dense", "only"))

_LARGEST = 1e24  # of what is drawn: the FLOPs of the largest trainings there have been are fewer


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, complete or not."""
    run = Run(folder)
    return run.config_path.is_file() or run.metrics_path.is_file()


def read_run(folder: Path) -> RunHistory:
    """Reads one run folder; missing or odd parts become notes. Raises StarfireError where a file is damaged."""
    run, notes = Run(folder), []
    if run.config_path.is_file():
        config = run.read_config()
    else:
        config = {}
        notes.append("it has no config.json: method, era and settings are not known")
    rows = _rows(run, notes)
    if not rows:
        notes.append("no epoch is finished yet")
    pruning, request = _mapping(config.get("pruning")), dict(_mapping(config.get("request")))
    model, data = _mapping(config.get("model")), _mapping(config.get("data"))
    target = _number(pruning.get("target"))
    method, fc = _text(pruning.get("method")), _text(pruning.get("fc"))
    if method == fc == "dense":
        target = 0.0
    asked = target != 0
    era = [x for x in map(_number, _list(pruning.get("era"))) if x is not None]
    settings = {k: v for k, v in request.items() if k not in _INDIFFERENT and k not in _PRUNING}
    settings |= {"model": _text(model.get("spec")), "data": _text(data.get("name") or data.get("spec"))}
    if data.get("image_size") is not None:
        settings["image_size"] = data["image_size"]
    if asked:
        settings |= {k: pruning.get(k) for k in ("method", "fc", "target", "era", "ramp", "keep_dense", "only")}
        settings["mask_every"] = request.get("mask_every", 1)
    if target is not None and method != "?":
        dead = [_number(config.get("inherited_sparsity")), *(row.get("sparsity_prunable") for row in rows)]
        called, share = method_and_share(
            method, fc, target, sparsity=max((x for x in dead if x), default=0.0), shrunk=bool(model.get("shrink"))
        )
        method, target = called if share != 0 else method, share
    epochs, seed = _number(config.get("epochs")), _number(config.get("seed"))
    return RunHistory(
        path=folder,
        method=method,
        fc=fc,
        target=target,
        era=(era[0], era[1]) if len(era) == 2 and asked else None,
        model=_text(model.get("spec")),
        data=_text(data.get("name") or data.get("spec")),
        epochs=None if epochs is None else round(epochs),
        lr_drops=tuple(x for x in map(_number, _list(config.get("lr_drops"))) if x is not None),
        seed=None if seed is None else round(seed),
        settings=settings,
        start_sparsity=_number(config.get("start_sparsity")) or 0.0,
        rows=rows,
        facts={k: config.get(k) for k in ("versions", "hardware", "command", "created", "layers", "request")},
        checkpoint=next((file for file in (run.best, run.last) if file.is_file()), None),
        notes=tuple(notes),
    )


def read_curves(path: Path) -> list[RobustCurve]:
    """The networks in one result of `attack`. Raises StarfireError if it is none, or is not finished."""
    document = read_robustness(path)
    if document is None:
        raise StarfireError(f"there is no file {path}")
    found = [document, *filter(None, [_mapping(document.get("against"))])]
    curves = [curve for part in found if (curve := _curve(path, part, document)) is not None]
    if not curves:
        state = "" if document.get("complete") else "; the attack has not finished: the same command goes on with it"
        raise StarfireError(f"{path} holds no accuracies{state}")
    return curves


def read_sizes(document: Mapping[str, Any]) -> tuple[Path, Path, int] | None:
    """(checkpoint, packed file, its bytes) from the output of `compress --json`; None if it is something else."""
    size = _number(document.get("packed_bytes"))
    if size is None or not isinstance(document.get("input"), str) or not isinstance(document.get("output"), str):
        return None
    return Path(document["input"]), Path(document["output"]), round(size)


def read_json(path: Path) -> Mapping[str, Any]:
    """Reads a JSON object. Raises StarfireError."""
    with reading(path):
        document = json.loads(path.read_bytes().decode())
    if not isinstance(document, dict):
        raise StarfireError(f"{path} is no result that can be drawn: it holds a {type(document).__name__}")
    return document


def attacks_beside(folder: Path, stem: str = "*") -> Iterator[Path]:
    """The results of `attack` beside the checkpoints of a folder."""
    yield from sorted(folder.glob(f"{stem}.attack-*.json"))


def _rows(run: Run, notes: list[str]) -> tuple[Mapping[str, float], ...]:
    by_epoch: dict[float, Mapping[str, float]] = {}
    strange = 0
    for row in run.read_metrics():
        numbers = {k: x for k, v in row.items() if (x := _number(v)) is not None}
        if "epoch" not in numbers:
            strange += 1
        else:
            by_epoch[numbers["epoch"]] = numbers  # of two rows for one epoch the later counts
    if strange:
        notes.append(f"{strange} rows of metrics.jsonl without an epoch are left out")
    return tuple(by_epoch[epoch] for epoch in sorted(by_epoch))


def _curve(file: Path, part: Mapping[str, Any], whole: Mapping[str, Any]) -> RobustCurve | None:
    points = _points(part.get("points"))
    if not points:
        return None
    checkpoint = str(part.get("checkpoint") or "?")  # compared, so whole, however long
    settings = _mapping(whole.get("settings"))
    return RobustCurve(
        file=file,
        title=_text(part.get("title")) if part.get("title") else _text(Path(checkpoint).name),
        checkpoint=checkpoint,
        attack=_text(whole.get("attack")),
        norm=_text(whole.get("norm") or settings.get("norm") or "linf"),
        images=round(_number(part.get("images")) or 0),
        points=points,
        noise=_points(_mapping(part.get("controls")).get("noise")),
        warnings=tuple(_text(w) for w in _list(part.get("warnings"))),
    )


def _points(rows: Any) -> tuple[CurvePoint, ...]:
    points = []
    for row in _list(rows):
        eps, top1 = _number(_mapping(row).get("eps")), _number(_mapping(row).get("top1"))
        if eps is None or top1 is None:
            continue
        low, high = _number(row.get("low")), _number(row.get("high"))
        points.append(
            CurvePoint(eps=eps, top1=top1, low=top1 if low is None else low, high=top1 if high is None else high)
        )
    return tuple(sorted(points, key=lambda p: p.eps))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST and math.isfinite(value) else None


def _text(value: Any) -> str:
    return printable(str(value), 80) if value is not None else "?"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else []
