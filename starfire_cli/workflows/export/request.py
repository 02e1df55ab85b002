"""The request of `starfire export`: its options, and which of them go together."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from starfire_cli.errors import BadOption
from starfire_cli.numbers import RGB
from starfire_cli.options import check, option
from starfire_cli.workflows.options import CHECKPOINT, IMAGE_SIZE, MEAN, MODEL, OUT, OUTPUT_PANEL, STD, WEIGHTS

TARGET_PANEL = "Target"
TARGETS = ("native", "x86-64", "x86-64-v3", "x86-64-v4", "aarch64", "armv7", "riscv64", "wasm32")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
_OF_JAVASCRIPT = (
    "abstract arguments await case catch const debugger default delete do document enum eval export extends false "
    "function implements in instanceof interface let location module native new null package private protected public "
    "require self static super switch this throw top true typeof undefined var void window WebAssembly"
)
_OF_PAGES = (
    "Array ArrayBuffer BigInt Blob Date Error File Float32Array Image Int32Array JSON Map Math Number Object Promise "
    "Set String Symbol TypeError URL Uint8Array close closed console event exports fetch focus frames history length "
    "name navigator open opener origin parent performance print process screen scroll status stop"
)
_OF_C = "c m dl rt pthread stdc util stdint stdio stdlib string errno math signal time"  # libc.so, stdint.h
_TAKEN = {
    *" ".join((_OF_JAVASCRIPT, _OF_PAGES, _OF_C, "example")).split(),
    *keyword.kwlist,
    *sys.stdlib_module_names,
}


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """One call of `starfire export`."""

    checkpoint: Path | None = CHECKPOINT.default(None)
    target: str = option(
        "native",
        "{choices}; native is this machine, x86-64 has the code of all its levels and takes the best there is.",
        metavar="NAME",
        panel=TARGET_PANEL,
        choices=TARGETS,
    )
    threads: bool = option(
        False,
        "Several threads may run the network; needs pthreads.",
        flags=("--threads",),
        panel=TARGET_PANEL,
    )
    demo: bool = option(
        False,
        "With --target wasm32: also a page that classifies images in a browser, offline.",
        flags=("--demo",),
        panel=OUTPUT_PANEL,
    )
    name: str | None = option(
        None,
        "What files and functions are called. Default: after the checkpoint.",
        metavar="NAME",
        panel=OUTPUT_PANEL,
    )
    model: str | None = MODEL.default(None)
    weights: str | None = WEIGHTS.default(None)
    mean: RGB | None = MEAN.default(None)
    std: RGB | None = STD.default(None)
    image_size: int | None = IMAGE_SIZE.default(None)
    out: Path | None = replace(
        OUT, metavar="DIR", help="The folder to write to. Default: export, beside the checkpoint."
    ).default(None)

    def check(self) -> None:
        """Raises BadOption for options that cannot mean anything, alone or together."""
        check(self)
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise BadOption(f"--name {self.name}: give letters, digits and _, 48 at most, as in --name digits_net")
        if self.name in _TAKEN:
            raise BadOption(
                f"--name {self.name} means something in C, Python or JavaScript; --name {self.name}_net does not"
            )
        if self.target == "wasm32" and self.threads:
            raise BadOption("--threads: --target wasm32 has none; every other target has")
        if self.target != "wasm32" and self.demo:
            raise BadOption(f"--demo is a page for --target wasm32, not for {self.target}")


def identifier(path: Path) -> str:
    """A name for the network of a checkpoint: its file's, or its run's where the file is the best or last of one."""
    stem = path.stem.removesuffix(".packed")
    if stem in ("best", "last", "final", "checkpoint", "model"):
        stem = path.resolve().parent.name or stem
    found = re.sub(r"[^A-Za-z0-9_]+", "_", stem).strip("_")[:48] or "network"
    return found if _NAME.fullmatch(found) and found not in _TAKEN else f"net_{found}"[:48]
