"""Result files of attacks: one JSON file a network and attack, with the outcome for every image.

The document is what people and scripts read; its last key, `per_image`, is what lets a later run go on where this one
was stopped, add sizes, and compare two networks on the same images.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from starfire_cli.damage import DamagedFile, reading
from starfire_cli.errors import StarfireError
from starfire_cli.formats.atomic import write_text

FORMAT = "starfire-attack"
VERSION = 1
PER_IMAGE = "per_image"
Bits = npt.NDArray[np.bool_]


def robustness_path(checkpoint: Path, attack: str) -> Path:
    """The result file beside a checkpoint: `best.pt` under `pgd:steps=20` gives `best.attack-pgd-steps-20.json`.

    Only `.pt` goes: a packed `best.safetensors` beside it has a file of its own.
    """
    slug = re.sub(r"[^A-Za-z0-9.+]+", "-", attack).strip("-")
    name = checkpoint.stem if checkpoint.suffix == ".pt" else checkpoint.name
    return checkpoint.with_name(f"{name}.attack-{slug}.json")


def read_robustness(path: Path, *, fresh: bool = False, to_write: bool = False) -> dict[str, Any] | None:
    """The document at `path`; None where there is none, or, with `fresh`, where it is incomplete.

    Raises StarfireError if something else lies there. With `to_write` it says what to do: it is not ours to write over.
    """
    document: Any = None
    try:
        with reading(path):
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                return None
            document = json.loads(text.decode())
    except DamagedFile as error:
        if path.suffix == ".json" and fresh:
            return None
        if path.suffix == ".json":
            raise DamagedFile(f"{error}; --fresh replaces it" if to_write else str(error)) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        if to_write:
            raise StarfireError(f"{path} is there and no result of starfire attack; --out FILE writes elsewhere")
        raise StarfireError(f"{path} is no result of starfire attack")
    return document


def write_robustness(path: Path, document: dict[str, Any]) -> None:
    """Writes `document` atomically. Raises StarfireError where that is impossible."""
    head = {"format": FORMAT, "version": VERSION}
    tail = {PER_IMAGE: document.get(PER_IMAGE, {})}
    body = {k: v for k, v in document.items() if k not in (*head, *tail)}
    write_text(path, json.dumps(head | body | tail, indent=1) + "\n")


def pack(bits: Bits) -> str:
    """Outcomes of images as text: eight a byte, the first in the lowest bit, base64."""
    return base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode()


def unpack(text: str, images: int) -> Bits:
    """The inverse of `pack`. Raises ValueError where the text does not hold `count` outcomes."""
    raw = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(raw) != (images + 7) // 8:
        raise ValueError(f"{len(raw)} bytes for {images} images")
    return np.unpackbits(raw, count=images, bitorder="little").astype(bool)
