"""Packs image files into tar shards that are read sequentially (docs/shards.md).

Which image goes into which shard is decided before anything is read. So shards can be written in any order by any
number of processes, and an interrupted packing goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from starfire_cli.data.draws import shuffled
from starfire_cli.data.finding import find
from starfire_cli.data.images import decode
from starfire_cli.data.images.encode import shrink_image
from starfire_cli.data.images.input_pipeline import spread_out
from starfire_cli.data.shards import index
from starfire_cli.data.shards.layout import Shards
from starfire_cli.data.shards.readahead import read_ahead
from starfire_cli.data.source import Encoded, Pixels, Source
from starfire_cli.data.splitting import limited, passed_over
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.atomic import atomic_write, write_text
from starfire_cli.options import check
from starfire_cli.records.data import PackedData, PackingPart, PackingStarted
from starfire_cli.version import __version__
from starfire_cli.workflows.data.request import PackRequest
from starfire_cli.workflows.data.write_shards import Task, is_done, record_of, write_shards

PROGRESS = ".packing"  # a folder in OUT that goes when the set is whole
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def pack(request: PackRequest) -> Iterator[PackingStarted | PackingPart | PackedData]:
    """Writes the missing shards, then the index that makes them a set.

    Raises:
        BadOption, StarfireError: one line: what cannot be done, and what would work.
    """
    check(request)
    started = perf_counter()
    source = find(request.source)
    parts = _parts(source, request)
    plan = _plan(source, parts, request)
    if request.out.exists() and not request.out.is_dir():
        raise BadOption(f"{request.out} is a file; give the name of a folder")
    if source.path is not None and request.out.resolve().is_relative_to(source.path.resolve()):
        raise BadOption(f"{request.out} lies in {source.path}, where it would be taken for images; name another place")
    if index.is_packed(request.out):
        raise StarfireError(f"{request.out} is a packed set already; give another folder, or remove it first")
    _begin(request.out, plan)
    decode.select_decoder(much=True)
    tasks = [task for name, files in parts.items() for task in _tasks(name, files, plan["images"][name], request)]
    missing = [task for task in tasks if not is_done(task)]
    yield PackingStarted(
        source=source.spec,
        images={name: len(files) for name, files in parts.items()},
        shards=len(tasks),
        there=len(tasks) - len(missing),
        notes=(*source.notes, *passed_over(source.train, source.val)),
    )
    there = done = sum(len(task.positions) for task in tasks) - sum(len(task.positions) for task in missing)
    began = perf_counter()
    for task in write_shards(missing, request.workers):
        done += len(task.positions)
        yield PackingPart(images=done, shard=task.path.name, per_second=(done - there) / (perf_counter() - began))
    yield _finish(source, parts, tasks, request, perf_counter() - started)


def _parts(source: Source, request: PackRequest) -> dict[str, Encoded]:
    parts: dict[str, Encoded] = {}
    for name, part, limit in (("train", source.train, request.limit_train), ("val", source.val, request.limit_val)):
        if part is None:
            continue
        part = limited(part, limit, f"--limit-{name}")
        if isinstance(part, Pixels):
            raise BadOption(f"{request.source}: {source.name} is read as a whole and kept in memory; packing is no use")
        if isinstance(part, Shards) and part.spool is not None:
            raise BadOption(f"{request.source}: copy the shards to a disk first, then pack the folder they are in")
        parts[name] = part
    return parts


def _plan(source: Source, parts: dict[str, Encoded], request: PackRequest) -> dict[str, Any]:
    """The settings that the shards' bytes depend on; packing resumes only where all of them are the same."""
    digest = hashlib.blake2b(digest_size=16)
    for files in parts.values():
        for stamp in files.stamps():
            digest.update(stamp)
    settings = asdict(request)
    for name in ("source", "out", "workers"):
        del settings[name]
    images = {name: _images(files, request) for name, files in parts.items()}
    return {"source": digest.hexdigest(), "classes": list(source.classes), "images": images, **settings}


def _images(files: Encoded, request: PackRequest) -> int:
    """The number of images in each shard."""
    found = re.fullmatch(r"([0-9]{1,18})\s*([KMG]B)?", request.shard_size.strip().upper())
    size = int(found[1]) * UNITS.get(found[2], 1) if found else 0
    if found is None or size < 1:
        raise BadOption(f"--shard-size {request.shard_size!r}: bytes (100MB, 1GB) or images (4000) are expected")
    if not found[2]:
        return size
    sizes = []
    positions = spread_out(len(files))
    with read_ahead(files, positions):
        for position in positions:
            try:
                _, data = shrink_image(files.read(position), files.where(position), request.short_side, request.quality)
                sizes.append(len(data))
            except (decode.Corrupt, OSError):  # the worker that meets it says so
                continue
    return max(1, round(size / (1536 + sum(sizes) / max(1, len(sizes)))))  # three blocks of 512 bytes around each


def _tasks(name: str, files: Encoded, images: int, request: PackRequest) -> list[Task]:
    order = shuffled(len(files), request.seed, 0)
    return [
        Task(
            files=files,
            positions=order[start : start + images],
            path=request.out / f"{name}-{number:06d}.tar",
            record=request.out / PROGRESS / f"{name}-{number:06d}.json",
            short_side=request.short_side,
            quality=request.quality,
            skip_corrupt=request.skip_corrupt,
        )
        for number, start in enumerate(range(0, len(files), images))
    ]


def _begin(out: Path, plan: dict[str, Any]) -> None:
    text = json.dumps(plan, sort_keys=True)
    file = out / PROGRESS / "plan.json"
    if file.is_file():
        if file.read_bytes() != text.encode():
            raise StarfireError(
                f"{out} holds an interrupted packing of other data or with other options; "
                "repeat those, or remove the folder"
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise StarfireError(f"{out} is not empty, and nothing in it is ours; give the name of a new folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def _side(out: Path, shards: list[dict[str, Any]]) -> int:
    """The longer side in pixels of the first image in the shards. Raises StarfireError where there is none."""
    first = next((shard["name"] for shard in shards if shard["images"]), None)
    if first is None:
        raise StarfireError(f"{out}: every training image is corrupt; there is nothing to pack")
    with tarfile.open(out / first) as archive:
        member = archive.next()
        content = archive.extractfile(member) if member else None
        assert content is not None
        return max(decode.size_of(BytesIO(content.read())))


def _finish(
    source: Source, parts: dict[str, Encoded], tasks: list[Task], request: PackRequest, seconds: float
) -> PackedData:
    """Writes the members' positions and at last the index, which completes the set."""
    skipped: list[str] = []
    described: dict[str, Any] = {}
    for name in parts:
        shards, members = [], []
        for task in (t for t in tasks if t.path.name.startswith(f"{name}-")):
            record = record_of(task)
            skipped += record["skipped"]
            members += [tuple(row) for row in record["members"]]
            shards.append(
                {
                    "name": task.path.name,
                    "images": len(record["members"]),
                    "bytes": record["bytes"],
                    "sha256": record["sha256"],
                }
            )
        content = BytesIO()
        np.save(content, np.array(members, dtype=index.MEMBER), allow_pickle=False)
        file = request.out / f"{name}.members.npy"
        with atomic_write(file, need=len(content.getvalue())) as target:
            target.write(content.getvalue())
        described[name] = {
            "images": len(members),
            "members": file.name,
            "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
            "shards": shards,
        }
    document = {
        "format": index.FORMAT,
        "version": index.VERSION,
        "made_by": f"starfire {__version__}",
        "name": source.name,
        "side": _side(request.out, described["train"]["shards"]),
        "short_side": request.short_side,
        "quality": request.quality,
        "seed": request.seed,
        "augment": source.augment,
        "stats": source.stats,
        "classes": list(source.classes),
        "parts": described,
    }
    write_text(request.out / index.INDEX, json.dumps(document, indent=1) + "\n")
    shutil.rmtree(request.out / PROGRESS, ignore_errors=True)
    return PackedData(
        out=request.out,
        images={name: part["images"] for name, part in described.items()},
        shards=len(tasks),
        bytes=sum(shard["bytes"] for part in described.values() for shard in part["shards"]),
        skipped=tuple(skipped),
        seconds=seconds,
    )
