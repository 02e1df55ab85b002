"""docs/formats.md is enough: a reader written from it alone reads every packed file, and its example is real."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from hypothesis import given, settings
from torch import Tensor

from starfire_cli.formats.packed.dtypes import dtype_of
from starfire_cli.formats.packed.encoding import ENCODINGS
from starfire_cli.formats.packed.read import PackedFile
from starfire_cli.formats.packed.rounding import round_state
from starfire_cli.formats.packed.write import pack
from tests.formats.packed.test_packed import folder, small
from tests.helpers import packed_reader
from tests.helpers.packed_strategies import checkpoints

__all__ = ["folder"]


def agrees(path: Path, state: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    tensors, found, _ = packed_reader.read(path.read_bytes())
    assert list(tensors) == list(state)
    for key, tensor in state.items():
        dtype, shape, data = tensors[key]
        assert dtype == dtype_of(tensor, key).name and tuple(shape) == tensor.shape
        assert data == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else True
    assert {key: torch.tensor(mask).bool().tolist() for key, mask in found.items()} == {
        key: mask.reshape(-1).tolist() for key, mask in masks.items()
    }


@settings(max_examples=60)
@given(checkpoint_=checkpoints())
def test_the_independent_reader_agrees(folder: Path, checkpoint_: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    state, masks = checkpoint_
    path = folder / "reader.safetensors"
    pack(path, state=state, masks=masks, meta={}, verify=False)
    agrees(path, state, masks)


def test_the_independent_reader_agrees_on_every_encoding_and_on_rounded_values(tmp_path: Path) -> None:
    state, masks = every_encoding()
    pack(tmp_path / "a", state=state, masks=masks, meta={}, effort="best")
    assert {layer.encoding for layer in PackedFile(tmp_path / "a").layers.values()} == set(ENCODINGS.names())
    agrees(tmp_path / "a", state, masks)
    for values in ("bf16", "fp16"):
        rounded, stored, _ = round_state(state, masks, values)
        pack(tmp_path / values, state=rounded, masks=masks, meta={}, stored=stored)
        agrees(tmp_path / values, rounded, masks)


def every_encoding() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One layer for each: its name says which encoding is the smallest."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(40, 50, 9, generator=generator).argsort(-1).argsort(-1)
    masks = {
        "window": (order < 2).reshape(40, 50, 3, 3),
        "ck": (torch.rand(40, 50, 1, 1, generator=generator) < 0.3).expand(40, 50, 3, 3).contiguous(),
        "blocks": (torch.rand(30, 30, generator=generator) < 0.3).repeat_interleave(4, 0).repeat_interleave(4, 1),
        "unstructured": torch.rand(20, 30, 11, 11, generator=generator) < 0.3,
        "dense": torch.ones(30, 40, dtype=torch.bool),
        "rare": torch.rand(300, 400, generator=generator) < 0.002,
    }
    state = {key: torch.randn(mask.shape, generator=generator) * mask for key, mask in masks.items()}
    return {key: tensor.masked_fill(~masks[key], 0) for key, tensor in state.items()}, masks


def test_the_smallest_encoding_is_the_one_made_for_the_structure(tmp_path: Path) -> None:
    state, masks = every_encoding()
    sizes = pack(tmp_path / "a", state=state, masks=masks, meta={}).tensors
    assert {t.key: t.encoding for t in sizes if t.key != "rare"} == {key: key for key in masks if key != "rare"}
    # A weight in 500, each about 11 bits of place and 27 of value: no bitmap of 15,000 bytes.
    rare = next(t for t in sizes if t.key == "rare")
    assert rare.packed_bytes < rare.live * (11 + 27) / 8 * 1.25


def test_the_worked_example_is_what_the_code_writes(tmp_path: Path, root: Path) -> None:
    text = (root / "docs" / "formats.md").read_text(encoding="utf-8").split("### A worked example")[1]
    length, data = (bytes.fromhex(block) for block in re.findall(r"```text\n(.*?)\n```", text, re.DOTALL))
    header = re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)[0].encode()
    mask = torch.zeros(3, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 1, 1] = mask[1, 0, 0, 0] = mask[2, 0, 2, 2] = True
    weight = torch.zeros(3, 1, 3, 3)
    weight[mask] = torch.tensor([0.5, -1.0, 0.75])
    state = {"conv.weight": weight, "conv.bias": torch.tensor([1.0, 2.0, 3.0])}
    pack(tmp_path / "a", state=state, masks={"conv.weight": mask}, meta={})
    assert (tmp_path / "a").read_bytes() == length + header.ljust(int.from_bytes(length, "little")) + data
    # Piece by piece, the table says the same bytes as the dump.
    pieces = re.findall(r"^\| ((?:`[0-9a-f ]+` ?)+) \|", text, re.MULTILINE)
    assert bytes.fromhex("".join(piece.replace("`", "") for piece in pieces)) == data
    agrees(tmp_path / "a", state, {"conv.weight": mask})


def test_the_reader_imports_nothing_of_ours(root: Path) -> None:
    source = (root / "tests" / "helpers" / "packed_reader.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(?:from|import) (?:starfire_cli|tests|torch|numpy)", source, re.MULTILINE)
    assert small()[1].keys() == {"conv.weight", "fc.weight"}
