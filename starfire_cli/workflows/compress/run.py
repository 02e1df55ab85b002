"""Compresses a checkpoint into a packed file, and restores it (docs/compress.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from starfire_cli.errors import BadOption, Mismatch, StarfireError
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.overwriting import files_of, refuse_overwriting
from starfire_cli.formats.packed.read import is_packed
from starfire_cli.formats.packed.rounding import round_state, share_state
from starfire_cli.formats.packed.write import pack
from starfire_cli.formats.run import find_checkpoint
from starfire_cli.pruning.layers import layers_of_state
from starfire_cli.pruning.masks import masks_from_zeros
from starfire_cli.pruning.ties import replace_tied, ties_of
from starfire_cli.records.compress import AccuracyChange, Compressed, Note, Outcome, Written
from starfire_cli.text import command_text
from starfire_cli.workflows.compress.request import CompressRequest

_TORCH = (".pt", ".pth", ".ckpt", ".bin")  # endings of what torch.save writes


def compress(request: CompressRequest) -> Iterator[Outcome]:
    """Packs a checkpoint; yields notes and at last the result.

    Raises:
        BadOption, Mismatch, StarfireError: one line: what cannot be done, and what would work.
    """
    request.check()
    path = find_checkpoint(request.checkpoint)
    checkpoint = _load(path, request.weights, strict=request.masks == "stored")
    yield from (Note(text=note) for note in checkpoint.notes)
    if checkpoint.parts:
        yield Note(text="what was folded is packed as the plain weight, and --unpack gives that, not the parts")
    if request.masks == "from-zeros":
        checkpoint, signs = zeros_as_masks(checkpoint)
        if signs:
            yield Note(text=f"{signs} of the zeros were -0.0 and are packed as 0.0")
    output = output_path(path, request.out, ".safetensors", ".packed.safetensors")
    if request.out is None and output.exists() and not is_packed(output):
        raise StarfireError(f"{output} exists and is not a packed file; give --out another name")
    yield from compress_checkpoint(checkpoint, request, output)


def compress_module(checkpoint: Checkpoint, request: CompressRequest) -> Iterator[Outcome]:
    """As `compress`, of a network in memory, to `request.out`; without masks, every zero of a layer is called dead."""
    request.check()
    assert request.out is not None
    if request.out.is_dir() or request.out.suffix != ".safetensors":
        raise BadOption(f"path={str(request.out)!r}: a .safetensors file is written; give it that ending")
    if not checkpoint.masks:
        checkpoint, _ = zeros_as_masks(checkpoint)
    yield from compress_checkpoint(checkpoint, request, request.out)


def compress_checkpoint(checkpoint: Checkpoint, request: CompressRequest, output: Path) -> Iterator[Outcome]:
    """Packs a checkpoint that is in memory; yields notes and at last the result. Raises as `compress`."""
    if not checkpoint.masks:
        yield Note(text=_without_masks(checkpoint))
    rounding = stored = accuracy = None
    if request.values != "exact":
        exact = checkpoint
        masks = exact.masks or {}
        if (codebook := request.codebook()) is not None:
            state, rounding = share_state(exact.state, masks, codebook)
        else:
            state, stored, rounding = round_state(exact.state, masks, request.values)
        checkpoint = replace(exact, state=state)
        try:
            accuracy = _accuracy(request, exact, checkpoint)
        except StarfireError as error:
            if request.data is not None or request.images is not None:
                raise
            yield Note(text=f"accuracy before and after was not measured: {error}")
    started = perf_counter()
    packed = pack(
        output,
        state=checkpoint.state,
        masks=checkpoint.masks,
        meta=checkpoint.meta.values,
        stored=stored,
        codebooks=request.codebook() is not None,
        effort=request.effort,
        keep_plain=request.keep_plain,
        verify=request.verify,
    )
    yield Compressed(
        input=checkpoint.path,
        output=output,
        packed=packed,
        seconds=perf_counter() - started,
        verified=request.verify,
        rounding=rounding,
        accuracy=accuracy,
    )


def unpack(path: Path | None, out: Path | None) -> Iterator[Outcome]:
    """Restores a packed file as a plain checkpoint. Raises StarfireError if it is none, or damaged."""
    path = find_checkpoint(path)
    if not is_packed(path):
        raise StarfireError(
            f"{path} is not a packed file; {command_text(('starfire', 'compress', str(path)))} packs it"
        )
    started = perf_counter()
    checkpoint = files.load(path)
    output = output_path(path, out, ".unpacked.pt", ".unpacked.pt")
    files.save(output, state=checkpoint.state, masks=checkpoint.masks, meta=checkpoint.meta.values)
    yield Written(
        input=path,
        output=output,
        form="checkpoint",
        bytes=output.stat().st_size,
        tensors=len(checkpoint.state),
        masks=len(checkpoint.masks or {}),
        seconds=perf_counter() - started,
    )


def output_path(path: Path, out: Path | None, suffix: str, other: str) -> Path:
    """The output path: `out`, in that folder, or beside `path`; with `other` where `suffix` would give `path` itself.

    Raises:
        BadOption: `out` is `path`, or ends like a file of another kind, as which nobody could read it.
    """
    name = path.stem.removesuffix(".packed") + suffix
    if out is None or out.is_dir():
        folder = path.parent if out is None else out
        output = folder / name
        if output.exists() and os.path.samefile(output, path):
            output = folder / (path.stem.removesuffix(".packed") + other)
    else:
        output = out
        ending = f".{suffix.rpartition('.')[2]}"
        alike = _TORCH if ending in _TORCH else (ending,)
        if output.suffix in (*_TORCH, ".safetensors", ".onnx") and output.suffix not in alike:
            raise BadOption(f"--out {output}: a {ending} file is written; give it that ending")
    refuse_overwriting(output, files_of(path))
    return output


def _load(path: Path, weights: str | None, *, strict: bool) -> Checkpoint:
    try:
        return files.load(path, strict=strict, weights=weights)
    except Mismatch as error:
        raise Mismatch(f"{error}; --masks from-zeros packs the weights as they are") from None


def zeros_as_masks(checkpoint: Checkpoint) -> tuple[Checkpoint, int]:
    """The checkpoint with masks that call every zero of a kernel or matrix dead, and how many of these were -0.0."""
    ties = ties_of(checkpoint.state)
    old = {ties.get(key, key): mask for key, mask in (checkpoint.masks or {}).items()}
    keys = dict.fromkeys([*old, *(layer.key for layer in layers_of_state(checkpoint.state))])
    masks = masks_from_zeros(checkpoint.state, [key for key in keys if key in checkpoint.state])
    masks = {key: mask for key, mask in masks.items() if key in old or not mask.all()}
    state = checkpoint.state
    signs = sum(int((state[key].float().signbit() & ~mask).sum()) for key, mask in masks.items())
    state = replace_tied(state, {key: state[key].masked_fill(~mask, 0) for key, mask in masks.items()})
    return replace(checkpoint, state=state, masks=masks), signs


def _without_masks(checkpoint: Checkpoint) -> str:
    # Zeros take no space wherever they lie, so that no layer has to be told from a table here.
    weights = [w for w in checkpoint.state.values() if w.ndim > 1 and w.is_floating_point()]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    if not zeros:
        return f"{checkpoint.path} has no masks and no zeros: nothing is pruned; it is packed all the same"
    return (
        f"{checkpoint.path} has no masks; {zeros} of its {total} weights are zero and take no space, "
        "but nothing says that they must stay zero (--masks from-zeros does)"
    )


def _accuracy(request: CompressRequest, exact: Checkpoint, rounded: Checkpoint) -> AccuracyChange:
    from starfire_cli.workflows.compress.accuracy_change import accuracy_change  # brings torchvision, slow to import

    return accuracy_change(
        exact,
        rounded,
        data=request.data,
        images=request.images,
        device=request.device,
        model=request.model,
        mean=request.mean,
        std=request.std,
    )
