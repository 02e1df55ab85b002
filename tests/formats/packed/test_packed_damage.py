"""Damaged and hostile packed files: an error that names what is wrong, never a crash, a hang, or a wrong tensor."""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint import file as checkpoint
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.packed import read as packed
from starfire_cli.formats.packed.rounding import round_state
from starfire_cli.formats.packed.write import pack
from tests.formats.packed.test_packed_reader import every_encoding
from tests.helpers.packed_strategies import same_bits


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of every encoding, plain tensors, rounded ones."""
    path = tmp_path_factory.mktemp("damage") / "model.safetensors"
    state, masks = every_encoding()
    small = {key: tensor[:12, :12].contiguous() for key, tensor in state.items()}
    masks = {key: mask[:12, :12].contiguous() for key, mask in masks.items()}
    small |= {"bn.weight": torch.rand(12), "steps": torch.tensor(3), "half": torch.rand(40, 3).half()}
    rounded, stored, _ = round_state({"ck": small["ck"]}, masks, "bf16")
    pack(path, state=small | rounded, masks=masks, meta={"classes": ["a", "b"]}, stored=stored)
    return path


def outcome(path: Path, original: Checkpoint, seconds: float = 5) -> str:
    """Read a damaged file in every way; whatever is returned must be right. Returns the error, "" if there is none."""
    errors = []
    for read in (packed.load, checkpoint.load, packed.load_state):
        started = time.perf_counter()
        try:
            result = read(path)
        except StarfireError as error:
            errors.append(str(error))
        else:
            state = result if isinstance(result, dict) else result.state
            assert list(state) == list(original.state)
            assert all(same_bits(state[key], tensor) for key, tensor in original.state.items())
            if not isinstance(result, dict):
                assert result.meta == original.meta
                assert all(torch.equal(result.masks[key], mask) for key, mask in original.masks.items())
        assert time.perf_counter() - started < seconds
    assert all(len(error.splitlines()) == 1 for error in errors)
    return errors[0] if errors else ""


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, changed, lost, doubled and moved bytes, a cut, two files spliced."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not raw:  # all lost
            break
        at, other = (int(i) for i in rng.integers(0, len(raw), 2))
        length = int(rng.integers(1, 64))
        match int(rng.integers(0, 8)):
            case 0 | 1 | 2:
                raw[at] ^= 1 << int(rng.integers(0, 8))
            case 3:
                raw[at] = int(rng.integers(0, 256))
            case 4:
                raw[at : at + length] = rng.integers(0, 256, len(raw[at : at + length]), dtype=np.uint8).tobytes()
            case 5:
                del raw[at : at + length]
            case 6:
                raw[at:at] = raw[other : other + length]
            case 7:
                del raw[max(16, at) :]
    return bytes(raw)


def fuzz(file: Path, folder: Path, count: int, seed: int) -> None:
    data, original = file.read_bytes(), packed.load(file)
    rng = np.random.default_rng(seed)
    path = folder / "damaged.safetensors"
    silent = 0
    for _ in range(count):
        bad = damaged(data, rng)
        path.write_bytes(bad)
        error = outcome(path, original)
        silent += not error and bad != data
    assert silent == 0


def test_hundreds_of_damaged_files(file: Path, tmp_path: Path) -> None:
    fuzz(file, tmp_path, 300, seed=0)


@pytest.mark.slow
def test_ten_thousand_damaged_files(file: Path, tmp_path: Path) -> None:
    fuzz(file, tmp_path, 10_000, seed=1)


def test_a_flipped_bit_in_every_byte_of_the_header_and_the_layers_is_found_and_named(
    file: Path, tmp_path: Path
) -> None:
    data, original = file.read_bytes(), packed.load(file)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    about = header.pop("__metadata__")
    path = tmp_path / "flipped.safetensors"
    rng = np.random.default_rng(0)
    for at in [*range(0, 300), *rng.integers(300, start, 80).tolist()]:
        bad = bytearray(data)
        bad[at] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bad)
        assert outcome(path, original), f"byte {at} of the header"
    layers = json.loads(about["layers"])
    assert len(layers) > 5
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        for at in {begin, end - 1, *rng.integers(begin, end, 3).tolist()}:
            bad = bytearray(data)
            bad[at] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(bad)
            key = name.removesuffix(".packed")
            assert outcome(path, original) == f"{path} is damaged: {key}: its bytes do not match their checksum"


def test_a_cut_anywhere_is_found(file: Path, tmp_path: Path) -> None:
    data, original = file.read_bytes(), packed.load(file)
    path = tmp_path / "cut.safetensors"
    for length in [*range(1, 40), *range(40, len(data), len(data) // 60)]:
        path.write_bytes(data[:length])
        assert outcome(path, original)
    path.write_bytes(data + b"\0")
    assert outcome(path, original)


def resigned(
    data: bytes, change: Callable[[dict[str, Any], dict[str, Any]], object], tail: bytes | None = None
) -> bytes:
    """The file with a changed header (entries, metadata) whose checksum is right."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    about = header["__metadata__"]
    about["layers"] = json.loads(about["layers"])
    change(header, about)
    if not isinstance(about.get("layers"), str):
        about["layers"] = json.dumps(about["layers"])
    about["header_crc32"] = "00000000"
    text = json.dumps(header, separators=(",", ":")).encode()
    head = len(text).to_bytes(8, "little") + text
    head = head.replace(b"00000000", f"{zlib.crc32(head):08x}".encode(), 1)
    return head + (data[start:] if tail is None else tail)


def test_the_test_can_sign_headers(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "same.safetensors"
    path.write_bytes(resigned(file.read_bytes(), lambda header, about: None))
    assert outcome(path, packed.load(file)) == ""


HOSTILE: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "terabytes": (lambda h, a: a["layers"]["window"].update(shape=[1 << 20, 1 << 20]), "would unpack to 4.4 TB"),
    "overflow": (lambda h, a: a["layers"]["ck"].update(shape=[1 << 62, 1 << 62, 3, 3]), "would unpack to"),
    "many axes": (lambda h, a: a["layers"]["ck"].update(shape=[1] * 33), "no shape"),
    "negative": (lambda h, a: a["layers"]["ck"].update(shape=[-4, -9]), "no shape"),
    "float": (lambda h, a: a["layers"]["ck"].update(shape=[4.0, 9]), "no shape"),
    "bool": (lambda h, a: a["layers"]["ck"].update(shape=[True, 9]), "no shape"),
    "type": (lambda h, a: a["layers"]["ck"].update(dtype="F31"), "F31"),
    "stored": (lambda h, a: a["layers"]["ck"].update(stored=["F32"]), "layer table"),
    "encoding": (lambda h, a: a["layers"]["ck"].update(encoding="../evil"), "unknown encoding '../evil'"),
    "another encoding": (lambda h, a: a["layers"]["ck"].update(encoding="unstructured"), "ck: "),
    "live": (lambda h, a: a["layers"]["ck"].update(live=1), "the table says 1"),
    "live inf": (lambda h, a: a["layers"]["ck"].update(live=float("inf")), "inf live weights"),
    "live negative": (lambda h, a: a["layers"]["ck"].update(live=-1), "-1 live weights"),
    "live text": (lambda h, a: a["layers"]["ck"].update(live="1"), "live weights"),
    "zero axis": (lambda h, a: a["layers"]["ck"].update(shape=[0, 4 * 10**9, 9]), "would unpack to"),
    "zero window": (lambda h, a: a["layers"]["ck"].update(shape=[4 * 10**9, 1, 0]), "would unpack to"),
    "zero axis, plain": (lambda h, a: h["bn.weight"].update(shape=[0, 1 << 40]), "has not the bytes|would unpack"),
    "digits": (lambda h, a: a["layers"]["ck"].update(shape=[10**4000]), "would unpack to"),
    "no type": (lambda h, a: a["layers"]["ck"].update(dtype=["F32"]), "layer table"),
    "a list": (lambda h, a: a["layers"].update(ck=[1]), "layer table"),
    "entry is text": (lambda h, a: h.update({"bn.weight": "x"}), "header cannot be read"),
    "deep meta": (lambda h, a: a.update(meta='{"a":' + "[" * 400 + "]" * 400 + "}"), "nested too deeply"),
    "deeper meta": (lambda h, a: a.update(meta="[" * 100_000), "meta cannot be read: it is nested too deeply"),
    "meta of large numbers": (lambda h, a: a.update(meta='{"data": ' + "9" * 300 + "}"), "no plain value"),
    "no meta": (lambda h, a: a.pop("meta"), "'meta' is missing"),
    "other shape": (lambda h, a: a["layers"]["unstructured"].update(shape=[12, 12, 11, 10]), "unstructured: "),
    "no crc": (lambda h, a: a["layers"]["ck"].pop("crc32"), "layer table"),
    "layers": (lambda h, a: a.update(layers="[" * 100_000), "layers cannot be read"),
    "no layers": (lambda h, a: a.update(layers="7"), "layers is no object"),
    "unknown layer": (lambda h, a: a["layers"].update(extra=a["layers"]["ck"]), "layer table"),
    "dropped layer": (lambda h, a: a["layers"].pop("ck"), "checksums"),
    "plain size": (lambda h, a: h["bn.weight"].update(shape=[1 << 40]), "has not the bytes of its shape"),
    "plain type": (lambda h, a: h["bn.weight"].update(dtype="C128", shape=[3]), "has not the bytes of its shape"),
    "offsets": (lambda h, a: h["bn.weight"].update(data_offsets=[0, 1 << 60]), "begins at|describes"),
    "negative offsets": (lambda h, a: h["bn.weight"].update(data_offsets=[-48, 0]), "begins at|describes"),
    "no offsets": (lambda h, a: h["bn.weight"].pop("data_offsets"), "header cannot be read"),
    "overlap": (lambda h, a: h["ck.packed"].update(h["window.packed"]), "begins at"),
    "metadata": (lambda h, a: a.update(meta={"not": "text"}), "not text"),
    "version": (lambda h, a: a.update(version="3"), "format version '3'; this starfire reads 1 and 2"),
    "digest": (lambda h, a: a.update(masks_digest="0" * 64), "digest"),
    "mask gone": (lambda h, a: a["layers"]["ck"].update(masked=False), "digest"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_before_memory_is_taken(file: Path, tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(resigned(file.read_bytes(), change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StarfireError, match=message) as caught:
        packed.load(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def with_payload(data: bytes, key: str, payload: bytes) -> bytes:
    """The file with other bytes for one packed layer, and all checksums right."""
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    entries.pop("__metadata__")
    begin, end = entries[f"{key}.packed"]["data_offsets"]
    tail = data[start:][:begin] + payload + data[start:][end:]

    def change(header: dict[str, Any], about: dict[str, Any]) -> None:
        for name, entry in header.items():
            if name != "__metadata__":
                entry["data_offsets"] = [
                    o + len(payload) - (end - begin) if o >= end else o for o in entry["data_offsets"]
                ]
        header[f"{key}.packed"]["shape"] = [len(payload)]
        about["layers"][key]["crc32"] = f"{zlib.crc32(payload):08x}"

    return resigned(data, change, tail)


@settings(max_examples=150)
@given(data_=st.data())
def test_a_hostile_layer_with_right_checksums_gives_an_error_or_a_tensor_of_its_shape(file: Path, data_: Any) -> None:
    data, original = file.read_bytes(), packed.load(file)
    layers = packed.PackedFile(file).layers
    key = data_.draw(st.sampled_from(sorted(layers)))
    payload = layer_bytes(data, key)
    if data_.draw(st.booleans()):
        rng = np.random.default_rng(data_.draw(st.integers(0, 2**32 - 1)))
        payload = damaged(payload + bytes(16), rng)
    else:
        payload = data_.draw(st.binary(max_size=300))
    path = file.with_name("hostile.safetensors")
    path.write_bytes(with_payload(data, key, payload))
    error, back = "", None
    try:
        back = packed.load_state(path)[key]
    except StarfireError as refused:
        error = str(refused)
    if back is None:
        assert re.search(rf"is damaged: (?:{key}:|its layer table)", error)
    else:
        assert back.shape == original.state[key].shape and back.dtype == original.state[key].dtype


def layer_bytes(data: bytes, key: str) -> bytes:
    start = 8 + int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8:start])[f"{key}.packed"]["data_offsets"]
    return data[start + begin : start + end]


def test_layer_bytes_are_put_back_right(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    path = tmp_path / "same.safetensors"
    path.write_bytes(with_payload(data, "window", layer_bytes(data, "window") + bytes(100)))
    assert outcome(path, packed.load(file)) == ""  # zeros after the last value are filling


def test_a_zstd_bomb_is_refused(file: Path, tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
    size = len(bomb)
    payload = bytes([2, 1, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + bomb
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(with_payload(file.read_bytes(), "unstructured", payload))
    with pytest.raises(StarfireError, match=r"unstructured: 268435456 bytes are compressed where 2178 belong"):
        packed.load(path)


def one_layer(path: Path, shape: list[int], encoding: str, payload: bytes) -> None:
    """A packed file of one layer of bytes, all checksums right."""
    line = {"dtype": "I8", "shape": shape, "encoding": encoding, "live": 0, "crc32": f"{zlib.crc32(payload):08x}"}
    about = {"format": "starfire-packed", "version": "1", "header_crc32": "00000000"}
    about |= {"layers": json.dumps({"w": line}), "plain_crc32": "", "masks_digest": "", "meta": "{}"}
    entry = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    text = json.dumps({"__metadata__": about, "w.packed": entry}, separators=(",", ":")).encode()
    head = len(text).to_bytes(8, "little") + text
    path.write_bytes(head.replace(b"00000000", f"{zlib.crc32(head):08x}".encode(), 1) + payload)


LARGEST = {
    "windows of 2": ([4_000_000, 1, 2], "window", bytes([1, 0])),
    "windows of 2, of two kinds": ([4_000_000, 1, 2], "window", bytes([2, 0, 1, 0, 0])),
    "windows of 9": ([800_000, 1, 9], "window", bytes([1, 0])),
    "one row of tiles": ([1, 8_000_000], "blocks", bytes([255, 0])),
    "one column of tiles": ([8_000_000, 1], "blocks", bytes([255, 0])),
    "kernels": ([8000, 1000], "ck", bytes([0])),
    "weights": ([8000, 1000], "unstructured", bytes([0])),
}


@pytest.mark.parametrize("name", LARGEST)
def test_reading_takes_little_more_than_the_tensor(tmp_path: Path, name: str) -> None:
    """The largest that a file of this length may unpack to, in the fewest bytes a mask can be said in."""
    shape, encoding, payload = LARGEST[name]
    payload += bytes(2000 - len(payload))
    if name.endswith("two kinds"):  # a bit a window, all alike, then no pattern numbers
        frame = zstandard.ZstdCompressor().compress(bytes(500_000))
        payload = bytes([2, 0, 0, 1, len(frame)]) + frame + bytes(2000)
    path = tmp_path / "large.safetensors"
    one_layer(path, shape, encoding, payload)
    file = packed.PackedFile(path)
    tracemalloc.start()
    tensor, _ = file.read("w", mask=True)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(tensor.shape) == shape and not tensor.any()
    assert most < 4 * tensor.nbytes + 4_000_000


@settings(max_examples=30)
@given(
    shape=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    large=st.sampled_from([1, 64, 4096]),
    live=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int8]),
)
def test_what_is_almost_all_dead_loads(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], large: int, live: int, dtype: torch.dtype
) -> None:
    """However few weights are left in however large a layer: the writer keeps to what a reader accepts."""
    shape[0] *= min(large, max(1, 2**20 // math.prod(shape)))
    tensor, mask = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=torch.bool)
    for at in range(live):
        mask.view(-1)[at * 7919 % mask.numel()] = True
        tensor.view(-1)[at * 7919 % mask.numel()] = at + 1
    path = tmp_path_factory.getbasetemp() / "sparse.safetensors"
    pack(path, state={"w": tensor}, masks={"w": mask}, meta={}, verify=False)
    back = checkpoint.load(path)
    assert same_bits(back.state["w"], tensor) and back.masks is not None and torch.equal(back.masks["w"], mask)


def test_more_than_the_machine_has_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_memory", lambda: 10_000)
    with pytest.raises(StarfireError, match=r"unpacks to .* kB; this machine has 10.0 kB"):
        packed.load(file)


def test_a_damaged_marker_is_still_a_packed_file(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    path = tmp_path / "marker.safetensors"
    path.write_bytes(data.replace(b"starfire-packed", b"starfire-pacKed"))
    with pytest.raises(StarfireError, match="the header does not match its checksum"):
        checkpoint.load(path)
    shutil.copy(file, path)
    assert packed.is_packed(path) and not packed.is_packed(tmp_path / "missing")
