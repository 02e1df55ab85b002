"""Torch files that ask for more than they hold: refused before anything is made, whatever the pickle says."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import random
import resource
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch._weights_only_unpickler import _get_allowed_globals

from starfire_cli.damage import DamagedFile
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.formats.checkpoint.pickle_calls import is_known, item_bytes
from starfire_cli.pruning.masks import digest

SIXTEEN = struct.pack("<4f", 1, 2, 3, 4)
NO_HOOKS = b"ccollections\nOrderedDict\n)R"
SHARED = b")" + 60 * b"q\x00h\x00\x86"  # a pair of twice the same pair, sixty deep: 2^60 for whoever walks it
FLOAT = struct.pack(">d", 0.1)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(module: str, name: str, *arguments: bytes, new: bool = False) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"t" + (b"\x81" if new else b"R")


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4, view: bytes = b"") -> bytes:
    return b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + whole(count) + view + b"tQ"


def tensor(stored: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    shape = (numbers(*size), numbers(*stride))
    return called("torch._utils", "_rebuild_tensor_v2", stored, whole(offset), *shape, b"\x89", NO_HOOKS)


def holding(**entries: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", SIXTEEN)
    return buffer.getvalue()


def legacy(content: bytes, keys: tuple[str, ...] = ("0",), count: int = 4) -> bytes:
    """The format of before torch 1.6: five pickles, then the storages."""
    head = b"\x80\x02" + whole(0x1950A86A20F9469CFC6C) + b".\x80\x02" + whole(1001) + b".\x80\x02}."
    tail = b"\x80\x02](" + b"".join(map(text, keys)) + b"e." + struct.pack("<q", count) + SIXTEEN
    return head + content + tail


def own(**changed: bytes) -> bytes:
    """A checkpoint of ours with one weight, some parts changed."""
    parts = {"format": text("starfire"), "version": whole(1), "masks": b"}", "masks_digest": text(digest({}))}
    parts |= {"model": b"}" + text("w") + tensor(storage(), 0, (2, 2), (2, 1)) + b"s", "meta": b"}"}
    return zipped(holding(**parts | changed))


def qtensor(count: int) -> bytes:
    quantizer = b"(" + named("torch", "per_tensor_affine") + b"G" + FLOAT + whole(0) + b"t"
    arguments = (storage("QInt8Storage", count=16), whole(0), numbers(count), numbers(0), quantizer, b"\x89", NO_HOOKS)
    return called("torch._utils", "_rebuild_qtensor", *arguments)


def sound() -> bytes:
    return tensor(storage(), 0, (2, 2), (2, 1))


BOMBS = {
    "bytearray": zipped(holding(w=called("builtins", "bytearray", whole(3 * 10**9)))),
    "bytearray of python 2": zipped(holding(w=called("__builtin__", "bytearray", whole(3 * 10**9)))),
    "FloatTensor": zipped(holding(w=called("torch", "FloatTensor", whole(10**9)))),
    "FloatTensor, new": zipped(holding(w=called("torch", "FloatTensor", whole(10**9), new=True))),
    "Tensor, new": zipped(holding(w=called("torch", "Tensor", whole(10**9), new=True))),
    "UntypedStorage": zipped(holding(w=called("torch.storage", "UntypedStorage", whole(10**9)))),
    "longer storage": zipped(holding(w=tensor(storage(count=10**9), 0, (10**9,), (1,)))),
    "shorter storage": zipped(holding(w=tensor(storage(count=2), 0, (2,), (1,)))),
    "missing storage": zipped(holding(w=tensor(storage(key="1"), 0, (2,), (1,)))),
    "storage of two types": zipped(holding(w=sound(), v=tensor(storage("DoubleStorage", count=2), 0, (2,), (1,)))),
    "beyond the storage": zipped(holding(w=tensor(storage(), 1, (2, 2), (2, 1)))),
    "far stride": zipped(holding(w=tensor(storage(), 0, (2, 2), (2**40, 1)))),
    "negative stride": zipped(holding(w=tensor(storage(), 3, (2, 2), (-2, 1)))),
    "stride 0": zipped(holding(w=tensor(storage(), 0, (10**10,), (0,)))),
    "many of stride 0": zipped(holding(**{f"w{n}": tensor(storage(), 0, (4 * 10**6,), (0,)) for n in range(200)})),
    "axis of 0": zipped(holding(w=tensor(storage(), 0, (0, 2**40), (1, 1)))),
    "5000 axes": zipped(holding(w=tensor(storage(), 0, (1,) * 5000, (1,) * 5000))),
    "shape of no numbers": zipped(holding(w=called("torch._utils", "_rebuild_tensor_v2", storage(), *4 * (b"N",)))),
    "quantized": zipped(holding(w=qtensor(10**9))),
    "nested": zipped(holding(w=called("torch._utils", "_rebuild_nested_tensor", sound(), sound(), sound(), sound()))),
    "text copied often": zipped(
        b"\x80\x02](" + text("a" * 10**5) + b"q\x00" + 3000 * (named("_codecs", "encode") + b"h\x00\x85R") + b"e."
    ),
    "keys that are trees": zipped(b"\x80\x02}" + SHARED + b"K\x01s."),
    "set of trees": zipped(b"\x80\x02" + named("builtins", "set") + b"]" + SHARED + b"a\x85R."),
    "keys of one hash": zipped(
        b"\x80\x02}(" + b"".join(whole(k * (2**61 - 1)) + b"N" for k in range(1, 20000)) + b"u."
    ),
    "memo far away": zipped(b"\x80\x02}r\xff\xff\xff\xff."),
    "legacy, set_": legacy(holding(w=tensor(storage(view=b"N"), 0, (10**9,), (1,)))),
    "legacy, storage": legacy(holding(w=tensor(storage(count=10**9, view=b"N"), 0, (10**9,), (1,))), count=10**9),
    "legacy, no storage": legacy(holding(w=tensor(storage(view=b"N"), 0, (2, 2), (2, 1))), keys=()),
    "legacy, other count": legacy(holding(w=tensor(storage(view=b"N"), 0, (2, 2), (2, 1))), count=2**40),
    "legacy, view": legacy(
        holding(w=tensor(storage(view=b"(" + text("v") + numbers(0, 10**9)[1:]), 0, (10**9,), (1,)))
    ),
    "metadata that are a tree": own(meta=b"}" + text("data") + b"}" + text("x") + SHARED + b"ss"),
    "metadata with a tensor": own(meta=b"}" + text("seed") + sound() + b"s"),
    "metadata, deep": own(meta=b"}" + text("seed") + b")" + 900 * b"\x85" + b"s"),
    "version, a tree": own(version=SHARED),
    "version, a tensor": own(version=sound()),
    "digest, a tensor": own(masks_digest=sound()),
    "mask's shape a tree": own(masks=b"}" + text("w") + b"}(" + text("shape") + SHARED + text("bits") + b"NNNu" + b"s"),
    "mask's shape huge": own(masks=b"}" + text("w") + b"}(" + text("shape") + b"]" + whole(10**30) + b"au" + b"s"),
    "training state a tree": own(optimizer=SHARED),
}


def peak() -> int:
    """Of this process so far, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("name", BOMBS)
def test_what_asks_for_more_than_the_file_holds_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.pt").write_bytes(BOMBS[name])
    before, started = peak(), time.process_time()
    with pytest.raises(StarfireError) as caught:
        load(tmp_path / "a.pt", training=True)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) <= 400
    assert peak() - before < 100_000 and time.process_time() - started < 2


@pytest.mark.parametrize(
    "data", [zipped(holding(w=sound())), legacy(holding(w=tensor(storage(view=b"N"), 0, (2, 2), (2, 1)))), own()]
)
def test_the_generator_makes_sound_files_too(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    assert load(tmp_path / "a.pt", training=True).state["w"].tolist() == [[1, 2], [3, 4]]


def shared_modules(depth: int) -> bytes:
    """A module that holds another twice, which holds another twice, and so on."""
    module = b""
    for level in range(depth):
        inside = b"}(" + text("a") + module + b"q\x00" + text("b") + b"h\x00u" if level else b"}"
        state = b"}(" + text("_modules") + inside + text("_parameters") + b"}" + text("p") + sound() + b"su"
        module = named("foo", "M") + b")\x81" + state + b"b"
    return zipped(b"\x80\x02" + module + b".")


def test_modules_that_share_their_children(tmp_path: Path) -> None:
    """The names of few are all given, as torch gives them; those of 2^60 are not begun."""
    (tmp_path / "a.pt").write_bytes(shared_modules(3))
    assert sorted(load(tmp_path / "a.pt").state) == ["a.a.p", "a.b.p", "a.p", "b.a.p", "b.b.p", "b.p", "p"]
    (tmp_path / "a.pt").write_bytes(shared_modules(60))
    started = time.process_time()
    with pytest.raises(DamagedFile, match="hold one another under more than 100000 names"):
        load(tmp_path / "a.pt")
    assert time.process_time() - started < 3


def test_many_foreign_classes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {f"x{n}": named("foo", f"C{n}") + b")\x81" for n in range(190)}
    (tmp_path / "a.pt").write_bytes(zipped(holding(w=sound(), **foreign)))
    reads = []
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: reads.append(a) or original(*a, **k))
    assert list(load(tmp_path / "a.pt").state) == ["w"] and len(reads) == 1


def test_all_that_torch_allows_is_known_to_the_check() -> None:
    """A later torch may allow more, and each must be thought about here."""
    assert sorted(name for name in _get_allowed_globals() if not is_known(name)) == []


@pytest.mark.parametrize(("kind", "name"), torch.storage._dtype_to_storage_type_map().items())
def test_bytes_of_storage_classes(kind: torch.dtype, name: str) -> None:
    assert item_bytes(f"torch.{name}") == item_bytes(f"torch.cuda.{name}") == kind.itemsize


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A pickle with opcodes lost, doubled, swapped and changed, and numbers that are extreme."""
    starts = [at for _, _, at in pickletools.genops(content)]
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    extremes = [0, -1, 3, 255, 2**31 - 1, 2**32, 2**62, 10**30]
    for _ in range(chance.randint(1, 3)):
        at, other = chance.randrange(len(parts)), chance.randrange(len(parts))
        at_number = chance.choice([i for i, part in enumerate(parts) if part[:1] in b"KMJ\x8a"] or [at])
        match chance.randrange(6):
            case 0:
                parts[at] = b""
            case 1:
                parts.insert(at, parts[other])
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
            case 3 | 4:
                parts[at_number] = whole(chance.choice(extremes))
            case 5:
                parts.insert(
                    at, chance.choice([b"}", b"]", b")", b"(", b"t", b"R", b"\x81", b"b", b"s", b"u", b"h\x05"])
                )
    return b"".join(parts)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hundreds_of_mutated_pickles(tmp_path: Path, count: int) -> None:
    weights = {"conv.weight": torch.rand(4, 3, 3, 3), "bn.running_mean": torch.zeros(4)}
    save(tmp_path / "own.pt", state=weights, masks={"conv.weight": weights["conv.weight"] > 0.5}, meta={"seed": 0})
    torch.save({"state_dict": weights, "sparse": torch.eye(3).to_sparse()}, tmp_path / "torch.pt")
    archives = [zipfile.ZipFile(tmp_path / name) for name in ("own.pt", "torch.pt")]
    chance, before = random.Random(0), peak()
    for number in range(count):
        whole_one, buffer = archives[number % 2], io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in whole_one.namelist():
                data = whole_one.read(name)
                archive.writestr(name, mutated(data, chance) if name.endswith("data.pkl") else data)
        (tmp_path / "a.pt").write_bytes(buffer.getvalue())
        with contextlib.suppress(StarfireError):
            load(tmp_path / "a.pt", training=True)
    assert peak() - before < 200_000
