"""The layout of a run folder: runs/NAME/{config.json, metrics.jsonl, last.pt, best.pt}, and more of some methods."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from starfire_cli.damage import Damaged, reading
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats import run_lock
from starfire_cli.formats.atomic import atomic_write, disk_problem, write_text

RUNS = Path("runs")
FORMAT = "starfire-run"


class Run:
    """One run folder: `Run(path)` opens it, `Run.create` makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.json"
        self.metrics_path = path / "metrics.jsonl"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.eliminated = path / "eliminated.pt"
        self.rewind = path / "rewind.pt"  # the weights that each round of lottery tickets is set back to

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that `train` writes, existing or not."""
        return self.config_path, self.metrics_path, self.last, self.best, self.eliminated, self.rewind

    def round_end(self, number: int) -> Path:
        """The checkpoint at the end of a round of training, from 1."""
        return self.path / f"round-{number:02}.pt"

    @classmethod
    def create(cls, root: Path, name: str | None, default: str) -> Run:
        """A new folder `root/name`; without a name, `root/default`, or the first free of `default-2`, `default-3` ...

        Raises:
            BadOption: the name is no plain folder name, or is taken.
            StarfireError: the folder cannot be made.
        """
        if name is not None and (name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name):
            raise BadOption(f"--name {name!r} is not the name of a folder; try {default!r}")
        number = 1
        while True:
            path = root / (name or (default if number == 1 else f"{default}-{number}"))
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                if name is not None:
                    raise BadOption(f"{path} exists already; give another --name, or go on with --resume") from None
                number += 1
            except OSError as error:
                raise StarfireError(f"cannot make the run folder {path}: {error.strerror or error}") from None

    def is_empty(self) -> bool:
        """Whether the folder holds nothing that a run has saved.

        A config.json of ours may be there. Anything that is not ours makes the folder somebody's.
        """
        if not self.path.is_dir():
            return False
        try:
            if any(path not in (self.config_path, self.metrics_path, self.rewind) for path in self._others()):
                return False
            if self.metrics_path.exists() and self.metrics_path.stat().st_size:
                return False
            return not self.config_path.exists() or self.read_config().get("format") == FORMAT
        except (OSError, StarfireError):
            return False

    def discard(self) -> None:
        """Removes a folder that was just made and holds no results; never anything else."""
        with contextlib.suppress(OSError):
            if self.is_empty():
                for path in self.path.iterdir():
                    path.unlink()
                self.path.rmdir()

    def _others(self) -> list[Path]:
        """Files in the folder besides the lock and temporary files of a killed process."""
        ours = (self.config_path, self.metrics_path, self.last, self.best, self.rewind)
        left = {path for file in ours for path in self.path.glob(f".{file.name}.*.tmp")}
        return [path for path in self.path.iterdir() if path not in left and path.name != run_lock.FILE]

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json in one step."""
        write_text(self.config_path, json.dumps(_plain(config), indent=2) + "\n")

    def read_config(self) -> dict[str, Any]:
        """The contents of config.json. Raises StarfireError if it is missing or damaged."""
        with reading(self.config_path):
            try:
                text = self.config_path.read_bytes()
            except FileNotFoundError:
                raise StarfireError(f"{self.path} has no config.json, so it is not a run folder") from None
            config = json.loads(text.decode())
            if not isinstance(config, dict):
                raise Damaged(f"it holds a {type(config).__name__}, not an object")
        return config

    def append_metrics(self, row: dict[str, Any]) -> int:
        """Appends a row to metrics.jsonl and syncs it; an incomplete last line is cut off first.

        Returns where the file ended before, in bytes, for `cut_metrics`.
        """
        line = json.dumps(_plain(row)) + "\n"
        try:
            with open(self.metrics_path, "ab+") as file:
                end = _end_of_last_line(file.tell(), self.metrics_path)
                file.seek(end)
                if _as_object(file.read()) is not None:  # whole, but for its newline
                    line = "\n" + line
                else:
                    file.truncate(end)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
                return end
        except OSError as error:
            raise disk_problem(error, self.metrics_path, len(line)) or error from None

    def cut_metrics(self, end: int) -> None:
        """Undoes the last `append_metrics`, which returned `end`; needs no space on the disk."""
        with contextlib.suppress(OSError):
            os.truncate(self.metrics_path, end)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, oldest first; a torn last line is dropped, and a missing file is no rows.

        Blank lines and a missing newline at the end, as editors leave them, do no harm.

        Raises StarfireError naming the line that is damaged anywhere else.
        """
        with reading(self.metrics_path):
            try:
                lines = self.metrics_path.read_bytes().split(b"\n")
            except FileNotFoundError:
                return []
        rows = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = _as_object(line)
            if row is None:
                if number == len(lines):  # no newline after it: torn; no part of an object is an object
                    continue
                with reading(self.metrics_path, f"line {number}"):
                    raise Damaged(f"{line[:60]!r} is not a JSON object")
            rows.append(row)
        return rows

    def truncate_metrics(self, epoch: int) -> None:
        """Drops the rows after `epoch`, so that a resumed run continues from there."""
        rows = self.read_metrics()
        with reading(self.metrics_path):
            kept = [row for row in rows if row.get("epoch", 0) <= epoch]
        with atomic_write(self.metrics_path) as file:
            file.writelines((json.dumps(row) + "\n").encode() for row in kept)


def newest_run(root: Path = RUNS) -> Run:
    """The run folder under `root`, or in a folder of runs there, that was modified last.

    Raises StarfireError if there is none.
    """
    runs = runs_in(root)
    if not runs:
        raise StarfireError(f"there are no runs in {root}/; give a checkpoint, or make one with starfire train")
    return runs[0]


def runs_in(root: Path = RUNS) -> list[Run]:
    """The run folders under `root`, and in folders of runs there, the last modified first."""
    runs = [Run(path.parent) for depth in ("*", "*/*") for path in root.glob(f"{depth}/config.json")]
    return sorted(runs, key=_last_written, reverse=True)


def find_checkpoint(path: Path | None, root: Path = RUNS) -> Path:
    """The checkpoint that a path means: a file itself, a folder's best.pt, else last.pt; None is the newest run.

    A folder that is no run may hold one model.safetensors, or the index of a sharded one.
    Raises StarfireError where there is none.
    """
    if path is None:
        path = newest_run(root).path
    if not path.exists():
        raise StarfireError(f"there is no file or run folder {path}")
    if not path.is_dir():
        return path
    run = Run(path)
    for candidate in (run.best, run.last, *(path / name for name in _FOLDER_FILES)):
        if candidate.is_file():
            return candidate
    raise StarfireError(f"{path} is a folder without best.pt or last.pt; give the checkpoint file itself")


_FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def _last_written(run: Run) -> tuple[float, str]:
    files = (run.config_path, run.metrics_path, run.last, run.best)
    return max(f.stat().st_mtime for f in files if f.exists()), run.path.name


def _as_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _end_of_last_line(size: int, path: Path) -> int:
    """The end of the last whole line of `path`, in bytes; 0 without one."""
    with open(path, "rb") as file:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _plain(value: Any) -> Any:
    """`value` as JSON has it: NaN and infinity become null, tuples lists, paths text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
