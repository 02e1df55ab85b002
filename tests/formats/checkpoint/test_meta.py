"""The metadata of a checkpoint: typed where they make sense, whole where they are written again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from starfire_cli.damage import Damaged, DamagedFile
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.formats.checkpoint.meta import Meta
from starfire_cli.formats.checkpoint.meta_reader import read_meta
from starfire_cli.formats.packed.write import pack


def metadata(**data: Any) -> dict[str, Any]:
    known = {"name": "digits", "spec": "digits", "classes": [str(n) for n in range(10)], "image_size": 12}
    known |= {"mean": [0.1, 0.1, 0.1], "std": [0.9, 0.9, 0.9], "val_fraction": 0.2, "split_seed": 0}
    return {"model": {"spec": "resnet20", "num_classes": 10, "image_size": 12}, "data": known | data}


BAD: list[Any] = [
    None,
    True,
    -1,
    0,
    10**9,
    2**70,
    1.5,
    math.nan,
    math.inf,
    "x" * 9999,
    "",
    "a\0b",
    [],
    {},
    [1, 2],
    ["a"] * 3,
]
BAD += [[math.nan] * 3, [True] * 3, [2, 2, 2], [[1], [1], [1]], {"a": 1}, [10**400] * 3]


@pytest.mark.parametrize("key", ["spec", "classes", "image_size", "mean", "std", "val_fraction", "split_seed"])
def test_a_record_that_makes_no_sense_is_left_aside(key: str) -> None:
    file = Path("a.pt")
    good = read_meta(metadata(), file)
    assert not good.unusable and good.model.spec == "resnet20"
    assert (good.data.spec, good.data.image_size, good.data.std) == ("digits", 12, (0.9, 0.9, 0.9))
    sound = {"spec": (), "classes": (["a"] * 3,), "split_seed": (0, 10**9), "image_size": ()}.get(key, ())
    for value in BAD:
        if value in (2**70, [10**400] * 3):  # what no metadata may hold anywhere
            with pytest.raises(Damaged, match="a int is no plain value"):
                read_meta(metadata(**{key: value}), file)
            continue
        found = read_meta(metadata(**{key: value}), file)
        usable = value in sound if not isinstance(value, bool | float) else False
        if key == "image_size":  # that of the model takes its place
            assert found.image_size == 12
        else:
            assert getattr(found.data, key) == (
                (tuple(value) if isinstance(value, list) else value) if usable else None
            ), value
        assert found.unusable == (() if usable or value is None else (key,)), value
    for part in ("model", "data", "pruning", "metrics", "request"):
        with pytest.raises(DamagedFile, match=f"a.pt: its metadata are damaged: {part} is no set of names"):
            read_meta({part: 3}, file)


def test_what_is_not_known_is_kept_and_written_again(tmp_path: Path) -> None:
    values = metadata(later=[1, {"x": None}]) | {"pruning": {"method": "ck", "new": 1.5}, "future": {"a": "b"}}
    state = {"a.weight": torch.ones(2, 2)}
    save(tmp_path / "a.pt", state=state, masks=None, meta=values)
    save(tmp_path / "b.pt", state=state, masks=None, meta=load(tmp_path / "a.pt").meta.values)
    pack(tmp_path / "c.safetensors", state=state, masks=None, meta=load(tmp_path / "b.pt").meta.values)
    for name in ("a.pt", "b.pt", "c.safetensors"):
        assert load(tmp_path / name).meta.values == values


def test_a_file_that_says_less_is_read_as_far_as_it_goes() -> None:
    assert read_meta({}, Path("a.pt")) == Meta()
    found = read_meta({"pruning": {"method": "ck", "target": 0.5}, "data": None}, Path("a.pt"))
    assert (found.pruning.method, found.pruning.target, found.pruning.era_steps) == ("ck", 0.5, None)
    assert found.data.info() is None and found.model.spec is None and found.request is None
    assert read_meta({"pruning": {"era_steps": [3, 9], "era": [0.5, 1]}}, Path("a.pt")).pruning.era_steps == (3, 9)
