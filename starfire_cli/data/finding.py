"""Resolves the value of `--data` into a data set and the place of its files."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from starfire_cli.data import scan
from starfire_cli.data.images import decode
from starfire_cli.data.own import read_own
from starfire_cli.data.sets import SETS
from starfire_cli.data.sets.webdataset import WebDataset
from starfire_cli.data.shards import remote
from starfire_cli.data.source import Pixels, Source
from starfire_cli.data.user_paths import expanded
from starfire_cli.errors import BadOption, StarfireError, unknown
from starfire_cli.own_code import names_code


def find(spec: str, image_size: int | None = None) -> Source:
    """The data set that `spec` names, listed but not decoded. Raises BadOption or StarfireError."""
    url = url_of(spec)
    if url is not None:
        return WebDataset().read_urls(url)
    if names_own(spec):
        return read_own(spec)
    name, path = locate(spec)
    return SETS.build(name).read(path, image_size)


def url_of(spec: str) -> str | None:
    """The URL in `https://...` or `webdataset:https://...`; None where `spec` is something else."""
    text = spec.removeprefix("webdataset:")
    return text if remote.is_url(text) else None


def names_own(spec: str) -> bool:
    """Whether `spec` is a data set of the user, `package.module:callable`, whose code is run."""
    return names_code(spec) and spec.partition(":")[0] not in SETS.names() and not os.path.exists(spec)


def only_asked(spec: str) -> bool:
    """Whether such data are opened only where the user names them, not a file: URLs, and code."""
    return url_of(spec) is not None or names_own(spec)


def refuse_unasked(spec: str, by: str) -> None:
    """Raises BadOption where a file names data behind a URL or code: such are opened only if the user names them, too.

    Args:
        spec: what the file says.
        by: which file.
    """
    if names_own(spec):
        raise BadOption(
            f"{by} names the data {spec}, whose code is not run unasked; --data {shlex.quote(spec)} runs it"
        )
    if (url := url_of(spec)) is not None:
        if url.startswith("pipe:"):
            remote.check_url(url)
        raise BadOption(
            f"{by} names the data {spec}, and no URL is opened unasked; --data {shlex.quote(spec)} opens it"
        )


def locate(spec: str) -> tuple[str, Path | None]:
    """Name and folder: of `digits`, `cifar10:PATH`, or a path that is recognised. Raises BadOption or StarfireError."""
    if not spec.strip():
        raise BadOption(f"--data {spec!r} is empty; give a path, or a name: {', '.join(SETS.names())}")
    name, colon, rest = spec.partition(":")
    if name in SETS.names():
        return name, existing_folder(rest, spec) if colon else None
    if not os.path.exists(expanded(spec, f"--data {spec}")) and not any(c in spec for c in "/\\.~"):
        raise unknown("data set", name, SETS.names())
    path = existing_folder(spec, spec)
    known = [n for n in SETS.names() if SETS.build(n).recognises(path)]
    if len(known) > 1:
        choices = " or ".join(f"--data {n}:{spec}" for n in known)
        raise StarfireError(f"--data {spec}: several data sets look like what lies there; say which: {choices}")
    return (known or ["folder"])[0], path


def existing_folder(text: str, spec: str) -> Path:
    """The folder that `text` names. Raises StarfireError where there is none."""
    path = expanded(text, f"--data {spec}")
    if not text or not os.path.exists(path):
        raise StarfireError(f"--data {spec}: there is no {text or 'path after the colon'} (looked in {Path.cwd()})")
    if not path.is_dir():
        raise StarfireError(f"--data {spec}: {path} is a file; unpack it and give the folder")
    return path


def recognise(spec: str) -> tuple[str, int | None]:
    """The set's name, and for class folders and shards the longer side of one image, without reading the rest.

    For whoever chooses hyperparameters before the data are opened. Raises as `find`.
    """
    url = url_of(spec)
    if url is not None:
        return WebDataset().described(url)
    if names_own(spec):
        part = read_own(spec).train
        return spec.partition(":")[0], int(part.images.shape[-1]) if isinstance(part, Pixels) else None
    name, path = locate(spec)
    if name == "webdataset" and path is not None:
        return WebDataset().described(path)
    return name, first_side(path) if name == "folder" and path is not None else None


def first_side(path: Path) -> int | None:
    """The longer side in pixels of the first image below `path` that can be read, if there is one."""
    for name in scan.walk(path):
        try:
            return max(decode.size_of(str(path / name)))
        except decode.Corrupt:
            continue
    return None
