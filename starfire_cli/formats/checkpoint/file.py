"""Writes checkpoints as `.pt` in one step, and reads them from any format in use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starfire_cli.damage import Damaged, reading
from starfire_cli.errors import BadOption, Mismatch, StarfireError, option
from starfire_cli.formats.atomic import atomic_write
from starfire_cli.formats.checkpoint import (
    fold,
    reparametrised,
    safetensors_file,
    torch_file,
    unwrap,
)
from starfire_cli.formats.checkpoint.meta import Meta
from starfire_cli.formats.checkpoint.meta_reader import read_meta
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.packed.container import checked_shape
from starfire_cli.formats.plain_values import check_plain
from starfire_cli.pruning.masks import Masks, digest, disagreements, pack_bits, unpack_bits
from starfire_cli.pruning.ties import apply_once, distinct, masks_apart, masks_once, replace_tied, ties_of
from starfire_cli.text import printable, shape_text

FORMAT = "starfire"
VERSION = 1
_OWN = ("format", "version", "model", "masks", "masks_digest", "meta")


def save(
    path: Path,
    *,
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None,
    meta: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Writes our own `.pt` atomically: after a crash the old file or the new one is there, whole.

    Dead weights are written as exact +0.0, whatever `state` holds there. `torch.load(path, weights_only=True)["model"]`
    is a plain state dict with unchanged keys; names of one tensor are so in the file, too, and have one mask.

    Raises:
        StarfireError: the disk is full or the folder cannot be written; an old file is untouched.
        TypeError: `meta` or `training` holds what `weights_only` loading would refuse.
        Mismatch: two names of one tensor have different masks.
    """
    masks = masks_once(masks or {}, ties_of(state))
    plain = apply_once(lambda _, tensor: _with_own_storage(tensor), state)
    # Copies: the model that is being saved is not touched.
    plain = replace_tied(plain, {key: plain[key].masked_fill(~mask.cpu(), 0) for key, mask in masks.items()})
    content: dict[str, Any] = {
        **_checked(dict(training or {}), "training"),
        "format": FORMAT,
        "version": VERSION,
        "model": plain,
        "masks": {key: {"shape": list(mask.shape), "bits": pack_bits(mask)} for key, mask in masks.items()},
        "masks_digest": digest(masks),
        "meta": _checked(dict(meta), "meta"),
    }
    need = sum(t.nbytes for t in distinct({str(i): t for i, t in enumerate(_tensors(content))}).values()) + 65536
    with atomic_write(path, need=need) as file:
        torch.save(content, file)


def load(path: Path, *, training: bool = False, strict: bool = True, weights: str | None = None) -> Checkpoint:
    """Reads a checkpoint of any format, detected by its content: ours, state dicts and wrappers, safetensors, packed.

    No code in the file is ever run. Damage that the format can show is found before anything is returned: every
    record's CRC (zip), sizes that do not add up, masks against their digest.

    Args:
        path: the file, or the index of a sharded one.
        training: also return what `train --resume` needs.
        strict: refuse a file whose dead weights are not zero; without it the caller compares masks and weights itself.
        weights: "model" for what was trained, "ema" for its average, or a name in the file, where it holds several
            networks; None: what was trained, if it is there (our own `.pt`: what was measured).

    Raises:
        StarfireError: it cannot be read, is damaged, or holds no weights; one line that names what is wrong.
        Mismatch: `strict`, and masks contradict weights or their digest.
    """
    try:
        with reading(path):
            found = _load(path, training=training, strict=strict, weights=weights)
            check_plain(found.training or {}, "training state", tensors=True)
            return found
    except StarfireError as error:
        raise type(error)(printable(str(error))) from error  # names in the file may hold anything


def _load(path: Path, *, training: bool, strict: bool, weights: str | None) -> Checkpoint:
    kind = torch_file.sniff(path)
    if kind == "packed":
        from starfire_cli.formats.packed import read as packed

        found = packed.load(path)
        _refuse_weights(path, weights, ("ema",) if _says_average(found.meta) else ("model",))
        return found
    content: Any = (safetensors_file if kind in ("safetensors", "sharded") else torch_file).load(path, kind)
    if isinstance(content, dict) and _is_text(content.get("format"), FORMAT):
        return _load_own(path, content, training=training, strict=strict, weights=weights)
    state, notes = unwrap.unwrap(content, path, weights)
    state, masks, folded = fold.fold(state)
    plain = reparametrised.fold_parts(state, masks)
    return Checkpoint(
        path=path,
        format=kind,
        state=plain.state,
        masks=plain.masks or None,
        notes=(*notes, *folded, *plain.notes),
        parts=plain.parts,
    )


def _load_own(path: Path, content: dict[str, Any], *, training: bool, strict: bool, weights: str | None) -> Checkpoint:
    """Checks the parts of our own format against one another."""
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        given = repr(version) if type(version) in (int, float, str) else f"a {type(version).__name__}"
        raise StarfireError(f"{path} has format version {given}; this starfire reads {VERSION}")
    state, packed_masks, values = content.get("model"), content.get("masks"), content.get("meta")
    if not isinstance(state, dict) or not isinstance(packed_masks, dict) or not isinstance(values, dict):
        raise StarfireError(f"{path} calls itself a starfire checkpoint but lacks model, masks or meta")
    meta = read_meta(values, path)
    notes = []
    raw = content.get("raw")
    if isinstance(raw, dict):
        notes.append(f"the weights are the average that training kept ({option('weights', 'model')}: as trained)")
        if weights == "model":
            state, notes = raw, ["the weights are those that were trained, not their average"]
    average = isinstance(raw, dict) or _says_average(meta)
    _refuse_weights(path, weights, ("ema", *(("model",) if raw is not None else ())) if average else ("model",))
    state = unwrap.plain_state(state, path)
    masks: Masks = {}
    for key, entry in packed_masks.items():
        with reading(path, f"the mask of {key!r:.80}"):
            shape = checked_shape(entry["shape"])
            if key not in state or tuple(state[key].shape) != shape:  # before its size is believed
                raise Damaged(f"there is no weight of its shape {shape_text(shape)}")
            masks[key] = unpack_bits(entry["bits"], shape)
    digest_matches = _is_text(content.get("masks_digest"), digest(masks))
    if not digest_matches:
        problem = "the masks do not match the digest written with them"
        if strict:
            raise Mismatch(f"{path}: {problem}")
        notes.append(problem)
    if strict:
        for key, (back, _) in disagreements(state, masks).items():
            if back:
                raise Mismatch(f"{path}: {key} has {back} dead weights that are not zero")
    ties = ties_of(state)
    if apart := masks_apart(masks, ties):
        if strict:
            raise Mismatch(f"{path}: {apart[0]}")
        notes += apart
    else:
        masks = masks_once(masks, ties)
    rest = {key: value for key, value in content.items() if key not in _OWN} if training else None
    return Checkpoint(
        path=path,
        format=FORMAT,
        state=state,
        masks=masks or None,
        meta=meta,
        training=rest,
        notes=tuple(notes),
        digest_matches=digest_matches,
    )


def _is_text(value: Any, text: str) -> bool:
    return isinstance(value, str) and value == text  # a tensor would compare itself element by element


def _says_average(meta: Meta) -> bool:
    """Whether a checkpoint of ours holds the average that `train --ema` keeps."""
    return meta.request is not None and meta.request.get("ema") is not None


def _refuse_weights(path: Path, weights: str | None, there: tuple[str, ...]) -> None:
    """Raises BadOption where the weights asked for are not in the file."""
    if weights is not None and weights not in there:
        raise BadOption(f"{option('weights', weights)}: {path} holds {' and '.join(there)} only")


def _with_own_storage(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous, and with a storage of its own, so that no larger one is written with it."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _checked(value: Any, where: str) -> Any:
    """`value` with tensors on the CPU, if `weights_only` loading will take it back."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if type(value) is list or type(value) is tuple:
        return type(value)(_checked(v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, dict):
        return {_checked(k, where): _checked(v, f"{where}.{k}") for k, v in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}; checkpoints hold tensors and plain values only")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for child in children for tensor in _tensors(child)]
