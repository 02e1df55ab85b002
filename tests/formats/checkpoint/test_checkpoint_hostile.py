"""Damaged, lying and hostile checkpoints end in one clear line: no crash, no code run, no wrong weights."""

from __future__ import annotations

import builtins
import importlib
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.formats.checkpoint.record import Checkpoint


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"conv.weight": torch.randn(4, 3, 3, 3, generator=generator), "bn.weight": torch.ones(4)}


def torch_bytes(content: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def starfire_bytes(folder: Path) -> bytes:
    masks = {"conv.weight": state()["conv.weight"] > 0}
    save(folder / "whole.pt", state=state(), masks=masks, meta={"seed": 0})
    return (folder / "whole.pt").read_bytes()


def refused(path: Path) -> str:
    """The one line with which `path` is refused."""
    with pytest.raises(StarfireError) as caught:
        load(path)
    text = str(caught.value)
    assert text.isprintable() and str(path) in text and len(text) < 600
    return text


def loaded_or_refused(path: Path) -> Checkpoint | None:
    """What `path` holds; None where one line refuses it. Any other exception passes, and fails the test."""
    try:
        return load(path, training=True)
    except StarfireError as error:
        text = str(error)
    assert text.isprintable() and len(text) < 600
    return None


# Damage


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_byte_is_found_or_harmless(tmp_path: Path, step: int) -> None:
    """The bytes of a small file, one after the other; what still loads must be what was saved, bit for bit."""
    whole = starfire_bytes(tmp_path)
    expected = load(tmp_path / "whole.pt", training=True)
    path = tmp_path / "flipped.pt"
    found = 0
    for at in range(0, len(whole), step):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        loaded = loaded_or_refused(path)
        if loaded is None:
            found += 1
            continue
        assert loaded.meta == expected.meta and loaded.training == expected.training
        assert loaded.state.keys() == expected.state.keys()
        assert all(torch.equal(loaded.state[k], v) for k, v in expected.state.items())
        assert torch.equal(loaded.masks["conv.weight"], expected.masks["conv.weight"])  # type: ignore[index]
    # What is left undetected is padding and fields of the zip format that nothing reads.
    assert found > len(whole) / step / 3


def test_the_damaged_record_is_named(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = bytes(data).index(state()["conv.weight"].numpy().tobytes())
    data[at + 100] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    assert "record a/data/0 does not match its CRC" in refused(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["starfire", "zip", "legacy", "safetensors"])
def test_every_truncation_is_refused(tmp_path: Path, kind: str) -> None:
    whole = {
        "starfire": lambda: starfire_bytes(tmp_path),
        "zip": lambda: torch_bytes(state()),
        "legacy": lambda: torch_bytes(state(), zipped=False),
        "safetensors": lambda: safetensors_bytes(state()),
    }[kind]()
    path = tmp_path / "cut"
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)


FUZZED = [
    lambda: torch_bytes({"state_dict": {f"module.{k}": v for k, v in state().items()}}),
    lambda: torch_bytes(state(), zipped=False),
    lambda: safetensors_bytes(state()),
]


def try_to_load(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    loaded_or_refused(path)


@settings(max_examples=300)
@given(
    base=st.sampled_from(FUZZED),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=5),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_fuzz(
    tmp_path_factory: pytest.TempPathFactory,
    base: Callable[[], bytes],
    edits: list[tuple[float, bytes]],
    cut: float,
) -> None:
    data = bytearray(base())
    for where, what in edits:
        at = int(where * len(data))
        data[at : at + len(what)] = what
    try_to_load(tmp_path_factory.getbasetemp() / "fuzz", bytes(data[: int(cut * len(data))]))


@settings(max_examples=200)
@given(
    data=st.binary(max_size=200),
    head=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"{", b"\x10" + 7 * b"\0" + b"{"]),
)
def test_fuzz_from_nothing(tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes) -> None:
    try_to_load(tmp_path_factory.getbasetemp() / "fuzz", head + data)


@pytest.mark.slow
def test_fuzz_twenty_thousand(tmp_path: Path) -> None:
    chance = random.Random(0)
    whole = [make() for make in FUZZED] + [starfire_bytes(tmp_path)]
    for number in range(20_000):
        data = bytearray(whole[number % len(whole)])
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try_to_load(tmp_path / "fuzz", bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data))


# Hostile


class Evil:
    """Pickles to a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"state_dict": state(), "x": e}, lambda e: [e]])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, wrap: Callable[[Any], Any], zipped: bool) -> None:
    marker = tmp_path / "marker"
    calls = [
        Evil(os.system, f"touch {marker}"),
        Evil(exec, f"open({str(marker)!r}, 'w')"),
        Evil(eval, f"open({str(marker)!r}, 'w')"),
        Evil(open, str(marker), "w"),
        Evil(builtins.__import__, "os"),
        Evil(bytearray, 10**12),
        Evil(importlib.import_module, "antigravity"),
    ]
    for call in calls:
        (tmp_path / "a.pt").write_bytes(torch_bytes(wrap(call), zipped))
        text = refused(tmp_path / "a.pt")
        assert "refused" in text or "damaged" in text
        assert not marker.exists()


def test_a_plain_pickle_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for protocol in range(6):
        data = pickle.dumps(Evil(os.system, f"touch {marker}"), protocol=protocol)
        (tmp_path / "a.pkl").write_bytes(data)
        refused(tmp_path / "a.pkl")
        assert not marker.exists()


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    whole = zipfile.ZipFile(io.BytesIO(torch_bytes(state())))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, b"\0" * 50_000_000 if name.endswith("data/0") else whole.read(name))
    assert path.stat().st_size < 100_000
    assert "zip bomb" in refused(path)


def test_records_that_overlap(tmp_path: Path) -> None:
    """Many records over the same bytes: small on disk, large if read one by one."""
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 1000)
        archive.filelist += archive.filelist * 1000
    assert "zip bomb" in refused(path)


def test_a_legacy_file_that_claims_terabytes(tmp_path: Path) -> None:
    data = torch_bytes({"w": torch.zeros(70_000)}, zipped=False)
    count = struct.pack("<i", 70_000)
    assert data.count(count) >= 2
    (tmp_path / "a.pt").write_bytes(data.replace(count, struct.pack("<i", 2**31 - 1)))
    refused(tmp_path / "a.pt")


def test_a_tensor_that_claims_terabytes(tmp_path: Path) -> None:
    index = torch.zeros(2, 1, dtype=torch.long)
    sparse = torch.sparse_coo_tensor(index, torch.ones(1), (10**6, 10**6), check_invariants=True)
    for tensor in (torch.zeros(1).expand(10**6, 10**6), sparse):
        torch.save({"w": tensor}, tmp_path / "a.pt")
        assert "far more than the file holds" in refused(tmp_path / "a.pt")


def test_many_names_for_one_large_tensor(tmp_path: Path) -> None:
    large = torch.zeros(1000, 1000)
    torch.save({f"w{n}": large for n in range(2000)}, tmp_path / "a.pt")
    assert "far more than the file holds" in refused(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**15]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F33", "shape": [4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4]}},
        {"w": 3},
        [1],
        {
            "v": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "w": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
        },
    ],
)
def test_a_safetensors_header_that_lies(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 24)
    refused(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((2**62).to_bytes(8, "little") + text + b"\0" * 24)
    refused(tmp_path / "a.safetensors")


# What is simply no checkpoint


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)
    assert "there is no file" in refused(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    assert "not a plain file" in refused(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    assert "is empty" in refused(tmp_path / "empty")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"hello", "starts with b'hello'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08", "gzip"),
        (b'{"a": 1}', "no checkpoint"),
        (pickle.dumps({"w": [1.0, 2.0]}), "damaged or no PyTorch checkpoint: Unsupported operand"),
    ],
    ids=["text", "lfs", "html", "gzip", "json", "pickle"],
)
def test_what_is_no_checkpoint(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "a").write_bytes(data)
    assert says in refused(tmp_path / "a")


def test_other_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", b"x")
    assert "no data.pkl" in refused(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "script.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("data.pkl", "constants.pkl", "code/x.py"):
            archive.writestr(f"a/{name}", b"x" * 100)
    assert "TorchScript archive" in refused(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.npz", arcname="storages")
    assert "tar archive" in refused(tmp_path / "a.tar")


@pytest.mark.parametrize("content", [[], {}, 3, "text", None, torch.ones(3), {"epoch": 3}, {"state_dict": {}}, {1: 2}])
def test_a_torch_file_without_weights(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert "holds no state dict" in refused(tmp_path / "a.pt")


def test_thousands_of_tensors(tmp_path: Path) -> None:
    torch.save({f"w{n}": torch.full((2,), float(n)) for n in range(4_000)}, tmp_path / "a.pt")
    found = load(tmp_path / "a.pt").state
    assert len(found) == 4_000 and found["w3999"].tolist() == [3999.0, 3999.0]


def test_tensors_without_data(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3, device="meta")}, tmp_path / "a.pt")
    assert "without data" in refused(tmp_path / "a.pt")
