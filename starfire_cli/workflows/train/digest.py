"""Digests of tensors and plain values, by which ranks compare what they hold."""

from __future__ import annotations

import hashlib

import torch


def content(value: object) -> str:
    """A digest of tensors and plain values in dicts, lists and tuples."""
    made = hashlib.blake2b(digest_size=6)
    _add(made, value)
    return made.hexdigest()


def _add(made: hashlib.blake2b, value: object) -> None:
    if isinstance(value, torch.Tensor):
        made.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        made.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            made.update(f"{key}: ".encode())
            _add(made, value[key])
    elif isinstance(value, list | tuple):
        made.update(f"{len(value)} ".encode())
        for item in value:
            _add(made, item)
    else:
        made.update(f"{value!r} ".encode())
