"""The folder of a comparison: compare.json with its settings and results, and a cell.json in every run's folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starfire_cli.damage import Damaged, reading
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.atomic import write_text
from starfire_cli.formats.run import Run
from starfire_cli.records.compare import CellFigures, CompareCell, Latency, Robustness
from starfire_cli.text import printable

FORMAT, CELL_FORMAT, VERSION = "starfire-compare", "starfire-cell", 1
FILE, CELL_FILE = "compare.json", "cell.json"


class CompareFolder:
    """The files of one comparison.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / FILE

    def run_of(self, cell: CompareCell) -> Run:
        """The run folder of a cell."""
        return Run(self.path / cell.name)

    def read(self) -> dict[str, Any] | None:
        """The contents of compare.json; None where there is none. Raises StarfireError for what is none of ours."""
        if self.path.exists() and not self.path.is_dir():
            raise BadOption(f"--out {self.path} is a file; give the name of a folder")
        if Run(self.path).config_path.exists():
            raise BadOption(f"--out {self.path} is the folder of one run; give the name of another folder")
        with reading(self.file):
            try:
                text = self.file.read_bytes()
            except FileNotFoundError:
                return None
            document = json.loads(text.decode())
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise Damaged("it is no file of starfire compare; --out DIR names another folder")
            if document.get("version") != VERSION:
                raise Damaged(
                    f"it is of version {printable(str(document.get('version')), 20)}; this one reads {VERSION}"
                )
            if not isinstance(document.get("settings"), dict):
                raise Damaged("its settings are missing")
        return document

    def write(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Write compare.json in one step, and return its contents."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        whole = {"format": FORMAT, "version": VERSION, **document, "written": now}
        plain: dict[str, Any] = as_plain(whole)
        write_text(self.file, json.dumps(plain, indent=1) + "\n")
        return plain

    def read_figures(self, cell: CompareCell, checkpoint: str) -> CellFigures | None:
        """The figures of a trained cell; None where there are none that count.

        A file that is damaged, of another cell or of another checkpoint counts as none: the cell is measured again.
        """
        path = self.run_of(cell).path / CELL_FILE
        try:
            with reading(path):
                document = json.loads(path.read_bytes().decode())
                same = (document["format"], document["version"]) == (CELL_FORMAT, VERSION)
                if not same or document["cell"] != as_plain(cell) or document["checkpoint"] != checkpoint:
                    return None
                return _figures(document["figures"])
        except StarfireError:  # DamagedFile, or there is none
            return None

    def write_figures(self, cell: CompareCell, checkpoint: str, figures: CellFigures) -> None:
        """Write cell.json in one step."""
        document = {
            "format": CELL_FORMAT,
            "version": VERSION,
            "cell": as_plain(cell),
            "checkpoint": checkpoint,
            "figures": as_plain(figures),
        }
        write_text(self.run_of(cell).path / CELL_FILE, json.dumps(document, indent=1) + "\n")


def as_plain(value: Any) -> Any:
    """`value` as JSON has it: dataclasses are objects, tuples lists, NaN and infinity null, paths text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _figures(values: dict[str, Any]) -> CellFigures:
    """Read figures that `as_plain` made plain. Raises anything for something else: call it under `reading`."""
    robust, latency = values["robustness"], values["latency"]
    numbers = {
        "top1": float,
        "top1_best": float,
        "sparsity_prunable": float,
        "sparsity_total": float,
        "seconds": float,
        "epochs": int,
        "training_flops": int,
        "inference_flops": int,
        "memory": int,
        "threads": int,
        "packed_bytes": int,
    }
    may_be_none = ("training_flops", "inference_flops", "memory", "threads", "packed_bytes")
    found: dict[str, Any] = {}
    for name, kind in numbers.items():
        value = values[name]
        if value is None and name in may_be_none:
            found[name] = None
            continue
        sound = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not sound or not math.isfinite(value):
            raise Damaged(f"{name} is {printable(str(value), 40)}")
        found[name] = kind(value)
    if robust is not None:
        points = tuple((float(eps), float(top1)) for eps, top1 in robust["points"])
        labels = tuple(str(label) for label in robust["labels"])
        if len(labels) != len(points):
            raise Damaged(f"{len(labels)} labels for {len(points)} points")
        robust = Robustness(attack=str(robust["attack"]), images=int(robust["images"]), labels=labels, points=points)
    if latency is not None:
        sparse = latency["sparse"]
        latency = Latency(
            dense=float(latency["dense"]),
            sparse=None if sparse is None else float(sparse),
            problem=None if latency["problem"] is None else str(latency["problem"]),
            threads=int(latency["threads"]),
        )
    curve = tuple(float(value) for value in values["curve"])
    facts = values["facts"]
    if not isinstance(facts, dict):
        raise Damaged("facts are no object")
    return CellFigures(**found, robustness=robust, latency=latency, curve=curve, facts=facts)
