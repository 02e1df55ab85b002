"""Reads files of `torch.save`, with `weights_only=True` and only after the file has been checked."""

from __future__ import annotations

import io
import json
import pickle
import re
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from starfire_cli.damage import reading
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint import zip_check
from starfire_cli.formats.checkpoint.inert import Called, stand_in
from starfire_cli.formats.checkpoint.names import utf8_name
from starfire_cli.formats.checkpoint.pickle_check import Checker, NoCheckpoint, check_legacy

_ADVICE = "loading never runs code; where it was made, torch.save(model.state_dict(), ...) writes a file that loads"
_MOST_CLASSES = 200  # different foreign classes in one file: more than any model has
_LONGEST_INDEX = 1 << 27  # bytes; one line a tensor


def sniff(path: Path) -> str:
    """The format by content: "torch", "torch-legacy", "safetensors", "sharded" or "packed".

    Raises StarfireError for what is missing, empty, no plain file, or no checkpoint.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise StarfireError(f"{path} is a folder, not a checkpoint")
        if not stat.S_ISREG(status.st_mode):
            raise StarfireError(f"{path} is not a plain file")
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise StarfireError(f"there is no file {path}") from None
    except OSError as error:
        raise StarfireError(f"cannot read {path}: {error.strerror or error}") from None
    if not head:
        raise StarfireError(f"{path} is empty")
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if _is_packed(path):
        return "packed"
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= status.st_size - 8:
        return "safetensors"
    if head[8:9] == b"{":
        raise StarfireError(f"{path} is a safetensors file cut short: its header alone needs {header} bytes")
    if head[:1] == b"\x80":
        return "torch-legacy"
    if head.lstrip().startswith(b"{") and _is_index(path):
        return "sharded"
    raise StarfireError(f"{path} is no checkpoint: {_what(head)}")


def load(path: Path, kind: str) -> Any:
    """The object in a torch file (`kind` "torch" or "torch-legacy"), tensors on the CPU, mapped where possible.

    Raises StarfireError if the file is damaged, declares more than it holds, or needs code to be run.
    """
    with reading(path):
        foreign = _foreign_names(path, kind)
        stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(stand_in(n), n) for n in foreign]
        try:
            with warnings.catch_warnings(), safe_globals(stand_ins):
                warnings.simplefilter("ignore")  # of torch's own about old formats
                with utf8_name(path) as openable:
                    # Windows gives a mapped file's name to no other: a run that goes on could not save.
                    mapped = kind == "torch" and sys.platform != "win32"
                    return torch.load(openable, map_location="cpu", weights_only=True, mmap=mapped)
        except Called as error:
            raise StarfireError(f"{path}: refused: it wants to call {error}; {_ADVICE}") from error
        except pickle.UnpicklingError as error:
            raise StarfireError(f"{path}: {_refusal(str(error))}") from error


def _foreign_names(path: Path, kind: str) -> set[str]:
    """The classes in the file that torch does not know, found after its sizes have been checked."""
    try:
        if kind == "torch":
            contents = zip_check.verify(path)
            checker = Checker(path.stat().st_size, contents.storages)
            checker.run(io.BytesIO(contents.pickle))
            foreign = checker.foreign
        else:
            foreign = check_legacy(path)
    except Called as error:
        raise StarfireError(f"{path}: refused: it wants to call {error}; {_ADVICE}") from error
    except NoCheckpoint as error:
        raise StarfireError(f"{path}: damaged or no PyTorch checkpoint: {error}") from error
    if len(foreign) > _MOST_CLASSES:
        raise StarfireError(f"{path}: refused: it asks for {len(foreign)} classes that torch does not know; {_ADVICE}")
    return foreign


def _refusal(text: str) -> str:
    """The error text for a file that torch refused."""
    found = re.search(r"GLOBAL (\S+)", text)
    if found:
        return f"refused: it asks for {found[1]}; {_ADVICE}"
    if "TorchScript" in text:
        return f"refused: it is a TorchScript archive, which is code; {_ADVICE}"
    if ".tar" in text:
        return f"refused: it is in torch's oldest format, a tar archive; {_ADVICE}"
    # What follows torch's first line is advice to switch its safety off.
    reason = text.rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0]
    return f"damaged or no PyTorch checkpoint: {reason[:200]}"


def _is_packed(path: Path) -> bool:
    from starfire_cli.formats.packed import read as packed  # it needs this package's Checkpoint itself

    return packed.is_packed(path)


def _is_index(path: Path) -> bool:
    try:
        return path.stat().st_size <= _LONGEST_INDEX and "weight_map" in json.loads(path.read_bytes())
    except Exception:  # noqa: BLE001 (whatever it is, it is no index)
        return False


def _what(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with git lfs pull"
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; download the file itself"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip; gunzip it first"
    if head[257:262] == b"ustar":
        return "it is a tar archive, which torch refuses to load safely; save it again with a newer torch"
    return f"it starts with {head[:8]!r}"
