"""Exports a checkpoint as machine code, with what programs need to call it (docs/export.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from math import inf
from pathlib import Path
from time import perf_counter

import torch

from starfire_cli.errors import StarfireError
from starfire_cli.formats.atomic import atomic_write, check_new_folder, check_writable, disk_problem
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.overwriting import files_of, refuse_overwriting
from starfire_cli.formats.run import find_checkpoint
from starfire_cli.networks.restore import RestoredModel, restore_model
from starfire_cli.pruning.masks import digest
from starfire_cli.records.export import ExportedFiles, ExportNote, ExportOutcome
from starfire_cli.sparse.export.network import Exported, export_network
from starfire_cli.sparse.export.targets import ExportTarget, find_target
from starfire_cli.version import __version__
from starfire_cli.workflows.export import checking, products
from starfire_cli.workflows.export.request import ExportRequest, identifier

_CLOSE = 1e-4  # of the largest logit: what float32 sums in another order may differ by


def export_checkpoint(request: ExportRequest) -> Iterator[ExportOutcome]:
    """Exports a checkpoint of any format; yields notes and at last the result.

    Raises:
        BadOption, StarfireError: one line: what cannot be done, and what would work. Nothing is written then.
    """
    request.check()
    started = perf_counter()
    path = find_checkpoint(request.checkpoint)
    target = find_target(request.target)
    name = request.name or identifier(path)
    folder = path.parent / "export" if request.out is None else request.out
    _check_folder(folder, path, target, name, demo=request.demo)
    checkpoint = files.load(path, weights=request.weights)
    restored = restore_model(
        checkpoint,
        torch.device("cpu"),
        model=request.model,
        image_size=request.image_size,
        mean=request.mean,
        std=request.std,
    )
    yield from (ExportNote(text=note) for note in restored.notes)
    if not checkpoint.masks:
        yield ExportNote(text=f"{path} has no masks: its weights that are zero are left out all the same")
    size = request.image_size or restored.image_size
    masks = digest(checkpoint.masks) if checkpoint.masks else ""
    found = export_network(
        restored.model,
        target,
        name=name,
        image=(3, size, size),
        mean=restored.mean,
        std=restored.std,
        digest=masks,
        threads=request.threads,
    )
    expected = checking.reference(restored.model, found.identity.image)
    about = _about(found, checkpoint, restored, target, masks=masks)
    if target.is_wasm:
        made = products.module(found, about, expected, demo=request.demo)
    else:
        made = products.library(found, target, about, expected, threads=request.threads)
    yield from (ExportNote(text=note) for note in made.notes)
    if made.difference is not None and not made.difference <= _CLOSE:
        told = "are NaN or infinite" if made.difference == inf else f"differ by {made.difference:.2g} of the largest"
        raise StarfireError(f"nothing was written: the logits of what was made {told}, those of the network are right")
    written = _write(folder, made.files)
    if _removed_stale_library(folder / f"lib{name}.so", made.files):
        yield ExportNote(text=f"{folder / f'lib{name}.so'} was removed: it was of an earlier export")
    yield ExportedFiles(
        input=path,
        name=name,
        target=target.name,
        files=tuple((file, len(made.files[file.name])) for file in written),
        image=found.identity.image,
        outputs=found.identity.outputs,
        live=found.live,
        weights=found.weights,
        memory=found.file.memory,
        difference=made.difference,
        command=made.command,
        seconds=perf_counter() - started,
    )


def _about(
    found: Exported,
    checkpoint: Checkpoint,
    restored: RestoredModel,
    target: ExportTarget,
    *,
    masks: str,
) -> dict[str, object]:
    """NAME.json: what the network is, and where it came from."""
    C, H, W = found.identity.image
    data, labels = _data(checkpoint, found.identity.outputs)
    return {
        "name": found.identity.name,
        "title": restored.title,
        "checkpoint": checkpoint.path.name,
        "starfire": __version__,
        "target": target.name,
        "levels": [level.name for level in target.levels],
        "image": {"channels": C, "height": H, "width": W, "type": "float32", "order": "NCHW", "range": [0, 1]},
        "mean": list(restored.mean),
        "std": list(restored.std),
        "outputs": found.identity.outputs,
        "data": data,
        "labels": labels,
        "masks_sha256": masks,
        "weights_sha256": restored.digest,
        "weights": found.weights,
        "live_weights": found.live,
    }


def _data(checkpoint: Checkpoint, outputs: int) -> tuple[str | None, list[str]]:
    """(the data set, the classes' names); (None, numbers) where the checkpoint does not tell."""
    info = checkpoint.meta.data.info()
    if info is not None and len(info.classes) == outputs:
        return info.name, [str(label) for label in info.classes]
    return None, [str(i) for i in range(outputs)]


def _check_folder(folder: Path, checkpoint: Path, target: ExportTarget, name: str, *, demo: bool) -> None:
    """Raises StarfireError or BadOption where a file could not be written."""
    if folder.is_file():
        raise StarfireError(f"--out {folder} is a file; give the name of a folder")
    check_new_folder(folder)
    if not folder.exists():
        return
    for file in products.file_names(target, name, demo=demo):
        refuse_overwriting(folder / file, files_of(checkpoint))
        check_writable(folder / file)
        if _is_of_others(folder / file):
            raise StarfireError(f"{folder / file} was not written by starfire export; give --out another folder")


def _is_of_others(path: Path) -> bool:
    """Whether a text is there that no export has written; all of ours name `starfire` near their beginning."""
    if path.suffix in (".o", ".so", ".wasm") or not path.exists():
        return False
    with open(path, "rb") as file:
        return b"starfire" not in file.read(4096)


def _removed_stale_library(library: Path, made: Mapping[str, bytes]) -> bool:
    """Remove the library of an earlier export where this one linked none: NAME.py would load it for this network."""
    if library.name in made or f"{library.stem.removeprefix('lib')}.o" not in made or not library.exists():
        return False
    try:
        library.unlink()
    except OSError as error:
        raise disk_problem(error, library) or error from None
    return True


def _write(folder: Path, content: Mapping[str, bytes]) -> list[Path]:
    """Write all files or none."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_problem(error, folder) or error from None
    try:
        with ExitStack() as stack:
            need = sum(map(len, content.values()))
            opened = {name: stack.enter_context(atomic_write(folder / name, need=need)) for name in content}
            for name, data in content.items():
                opened[name].write(data)
                opened[name].flush()
    except BaseException:
        with suppress(OSError):
            if new:
                folder.rmdir()
        raise
    return [folder / name for name in content]
