"""Links an object file to a shared library by a compiler that is at hand."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 120
_UNIX = "cc"


def link_command(linkers: Sequence[str], name: str, *, threads: bool) -> tuple[str, ...]:
    """The command that links libNAME.so from NAME.o: by the first linker that is installed, else by the first."""
    found = next((linker for linker in linkers if shutil.which(linker)), linkers[0] if linkers else _UNIX)
    plain = ("-shared", "-nostartfiles", "-s")  # nothing happens when it is loaded, and its own names suffice
    return (found, *plain, "-o", f"lib{name}.so", f"{name}.o", *(("-pthread",) if threads else ()))


def linked(code: bytes, command: Sequence[str], name: str) -> tuple[bytes | None, str]:
    """(the shared library, "") by running `command`, or (None, why there is none)."""
    if shutil.which(command[0]) is None:
        return None, f"no {command[0]} is installed"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{name}.o").write_bytes(code)
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, f"{command[0]} failed: {error}"
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            return None, f"{command[0]} failed: {lines[-1][:200]}"
        return Path(folder, f"lib{name}.so").read_bytes(), ""
