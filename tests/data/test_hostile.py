"""Hostile tar files, indexes and checkpoints: one line each, in little time and memory, and no network."""

from __future__ import annotations

import hashlib
import io
import json
import random
import resource
import struct
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.damage import Damaged, DamagedFile
from starfire_cli.data import cache, open_data, open_val
from starfire_cli.data.finding import find
from starfire_cli.data.shards import index as packed
from starfire_cli.data.shards import remote, tarset
from starfire_cli.data.shards.members import members
from starfire_cli.data.shards.spool import Spool, limit
from starfire_cli.errors import BadOption, StarfireError
from tests.helpers.data_layouts import options, picture
from tests.helpers.shard_sets import served

SECONDS, BYTES = 2.0, 2**28


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where the block takes long or much memory (its address space is limited meanwhile)."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    began = time.monotonic()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.monotonic() - began < SECONDS


def header(name: str, size: int = 0, kind: bytes = b"0", **how: Any) -> bytes:
    """A tar header as the standard library writes it; sizes below 0 as GNU does, base 256."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, max(0, size)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-512:])
    if size < 0:
        block[124:136] = b"\xff" * 4 + struct.pack(">q", size)
    for place, content in how.items():
        block[int(place[1:]) : int(place[1:]) + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(content: bytes, kind: bytes = b"x", size: int | None = None) -> bytes:
    return header("pax", len(content) if size is None else size, kind) + padded(content)


def record(key: str, value: str) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return f"{length} {key}={value}\n".encode()


LABEL = header("a.cls", 1) + padded(b"1")
IMAGE = header("a.png", 5) + padded(b"12345")
END = bytes(1024)

DAMAGED: dict[str, bytes] = {
    "size -512": LABEL + header("a.png", -512),
    "size -1": LABEL + header("a.png", -1),
    "size -2^63": LABEL + header("a.png", -(2**63)),
    "size -1024, back to the label": LABEL + header("a.png", -1024) + END,
    "size of a folder's neighbour": LABEL + header("a.png", 8**11 - 1) + END,
    "pax size -512": LABEL + pax(record("size", "-512")) + IMAGE + END,
    "pax size huge": LABEL + pax(record("size", "9" * 30)) + IMAGE + END,
    "pax size no number": LABEL + pax(record("size", "many")) + IMAGE + END,
    "pax size of 5000 digits": LABEL + pax(record("size", "9" * 5000)) + IMAGE + END,
    "pax for all, size -512": pax(record("size", "-512"), b"g") + LABEL + IMAGE + END,
    "pax length 0": pax(b"0 path=x\n") + LABEL + END,
    "pax length huge": pax(b"9" * 11 + b" path=x\n") + LABEL + END,
    "pax digits": pax(b"1" * 2**19) + LABEL + END,
    "pax of one-byte records": pax(b"1 " * 2**17 + b"=") + LABEL + END,
    "pax header size -512": pax(b"", size=-512) + LABEL + END,
    "pax header size 2^33": pax(b"", size=2**33 - 1) + LABEL + END,
    "long name of size -512": header("x", -512, b"L") + LABEL + END,
    "long name of 8 GB": header("x", 2**33 - 1, b"L") + LABEL + END,
    "long name cut off": LABEL + header("x", 600, b"L") + bytes(100),
    "a header in the middle overwritten": LABEL + IMAGE + b"\xff" * 512 + LABEL + END,
    "a header cut off": LABEL + IMAGE[:300],
    "content cut off": LABEL + IMAGE[:514],
    "sparse without end": LABEL + header("a.png", 0, b"S", p482=b"\1"),
    "a header whose sum is wrong": LABEL + IMAGE[:130] + b"7" + IMAGE[131:] + END,
    "not a tar file": b"PK\3\4" + bytes(2000),
    "text": b"this is no tar file" * 100,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_tar_file_is_one_line_at_once(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STARFIRE_CACHE", "off")
    (tmp_path / "train-0.tar").write_bytes(content)
    with bounded(), pytest.raises(StarfireError, match=r"train-0\.tar is damaged: ") as caught:
        open_data(f"webdataset:{tmp_path}", options())
    assert "\n" not in str(caught.value)
    with pytest.raises(Damaged):
        list(members(io.BytesIO(content)))  # as a stream, which cannot be asked for its length


@pytest.mark.parametrize("headers", [10_000])
def test_many_headers_before_one_member(headers: int) -> None:
    content = pax(record("path", "b.png")) * headers + IMAGE + END
    with bounded():
        found = list(members(io.BytesIO(content), len(content)))
    assert [(m.name, m.size) for m in found] == [("b.png", 5)]


def test_a_header_for_all_is_not_kept_once_a_member() -> None:
    keys = b"".join(record(f"k{i}", "") for i in range(20_000))
    content = pax(keys, b"g") + (pax(record("path", "b.png")) + IMAGE) * 2000 + END
    with bounded():
        assert len(list(members(io.BytesIO(content), len(content)))) == 2000


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_the_standard_library(form: int) -> None:
    rng = random.Random(form)
    buffer = io.BytesIO()
    names = ["a.png", "folder/b.cls", "d/" * 60 + "c.png"]
    names += [] if form == tarfile.USTAR_FORMAT else ["caf\xe9/" * 40 + "d.png", "x" * 300]
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in names * 3:
            info = tarfile.TarInfo(name)
            info.size = rng.choice([0, 1, 511, 512, 513, 3000])
            archive.addfile(info, io.BytesIO(rng.randbytes(info.size)))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                other = tarfile.TarInfo("other")
                other.type, other.linkname = kind, "/etc/passwd"
                archive.addfile(other)
    content = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    for length in (len(content), None):
        found = list(members(io.BytesIO(content), length))
        assert [(m.name, m.offset, m.size) for m in found] == expected
        assert all(m.start == content[m.offset : m.offset + m.size][:64] for m in found)


def png(side: int = 16) -> bytes:
    buffer = io.BytesIO()
    picture(0, side, side).save(buffer, "PNG")
    return buffer.getvalue()


def shard_set(folder: Path, *, npy: bytes | None = None, **changes: Any) -> Path:
    """Two images as `starfire data pack` writes them; checksums fit whatever is changed."""
    folder.mkdir(parents=True, exist_ok=True)
    image = png()
    tar, rows = b"", []
    for i in range(2):
        rows.append((len(tar) + 512, len(image), i, i))
        tar += header(f"{i}.png", len(image)) + padded(image) + header(f"{i}.cls", 1) + padded(b"%d" % i)
    (folder / "train-0.tar").write_bytes(tar + END)
    if npy is None:
        buffer = io.BytesIO()
        np.save(buffer, np.array(changes.pop("rows", rows), dtype=packed.MEMBER))
        npy = buffer.getvalue()
    (folder / "train.members.npy").write_bytes(npy)
    shard = {"name": "train-0.tar", "images": 2, "bytes": len(tar + END), "sha256": "0" * 64}
    part = {"members": "train.members.npy", "sha256": hashlib.sha256(npy).hexdigest(), "shards": [shard]}
    index: dict[str, Any] = {"format": "starfire-shards", "version": 1, "name": "x", "side": 16}
    index |= {"classes": ["a", "b"], "augment": None, "stats": None, "parts": {"train": part}}
    for key, value in changes.items():
        {"shard": shard, "part": part}.get(key.partition("_")[0], index)[key.rpartition("_")[2]] = value
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


DESCR = "[('offset','<i8'),('size','<i8'),('label','<i4'),('key','<i4')]"
LIES: dict[str, dict[str, Any]] = {
    "3 billion images": {"shard_images": 3_000_000_000},
    "2^60 images": {"shard_images": 2**60},
    "1e400 images": {"shard_images": float("inf")},
    "-2 images": {"shard_images": -2},
    "images as text": {"shard_images": "2"},
    "images true": {"shard_images": True},
    "bytes NaN": {"shard_bytes": float("nan")},
    "a name with ESC": {"shard_name": "\x1b[31m.tar"},
    "a name above": {"shard_name": "../train-0.tar"},
    "an absolute name": {"shard_name": "/etc/passwd.tar"},
    "a URL": {"shard_name": "http://127.0.0.1/train-0.tar"},
    "no list of shards": {"part_shards": 5},
    "shards of shards": {"part_shards": [[1]]},
    "members a list": {"part_members": ["train.members.npy"]},
    "parts a text": {"parts": "train"},
    "classes a text": {"classes": "ab"},
    "classes of numbers": {"classes": [0, 1]},
    "side huge": {"side": 10**30},
    "side none": {"side": None},
    "augment unknown": {"augment": "nonsense"},
    "augment a number": {"augment": 3},
    "stats short": {"stats": [[0.5, 0.5, 0.5]]},
    "stats of text": {"stats": "ab"},
    "stats infinite": {"stats": [[1e400] * 3, [1, 1, 1]]},
    "stats zero": {"stats": [[0.5] * 3, [0, 0, 0]]},
    "stats huge": {"stats": [[10**400] * 3, [1, 1, 1]]},
    "junk for members": {"npy": b"hello"},
    "nothing for members": {"npy": b""},
    "a zip for members": {"npy": b"PK\3\4" + bytes(100)},
    "a pickle for members": {"npy": npy_header("{'descr':'O','fortran_order':False,'shape':(2,)}") + bytes(48)},
    "2^60 members": {"npy": npy_header(f"{{'descr':{DESCR},'fortran_order':False,'shape':({2**60},)}}")},
    "members of many axes": {"npy": npy_header(f"{{'descr':{DESCR},'fortran_order':False,'shape':(2,{2**40})}}")},
    "nested": {"npy": npy_header("(" * 9000)},
    "no rows": {"rows": [(512, 10, 0, 0)]},
    "an offset below": {"rows": [(-512, 10, 0, 0), (512, 10, 1, 1)]},
    "a size that wraps": {"rows": [(2**62, 2**62 + 9, 0, 0), (512, 2**63 - 1, 1, 1)]},
    "an offset that wraps": {"rows": [(2**63 - 1, 2**63 - 1, 0, 0), (512, 10, 1, 1)]},
    "a label behind the last": {"rows": [(512, 10, 0, 0), (512, 10, 2, 1)]},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_an_index_that_lies_is_one_line_at_once(lie: dict[str, Any], tmp_path: Path) -> None:
    folder = shard_set(tmp_path / "set", **lie)
    with bounded(), pytest.raises(StarfireError) as caught:
        open_data(str(folder), options(batch_size=2))
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text and "\x1b" not in text, text


def test_the_set_that_the_lies_are_made_from_is_sound(tmp_path: Path) -> None:
    part = find(str(shard_set(tmp_path / "set"))).train
    assert [part.read(i) for i in range(2)] == [png()] * 2 and part.labels.tolist() == [0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content",
    [
        b'["starfire-shards"' + b",[" * 100_000,
        b'{"format": "starfire-shards"',
        b'"starfire-shards"',
        b"\xffstarfire-shards",
    ],
)
def test_an_index_that_is_no_json(content: bytes, tmp_path: Path) -> None:
    shard_set(tmp_path)
    (tmp_path / "index.json").write_bytes(content)
    with bounded(), pytest.raises(DamagedFile, match=r"index\.json is damaged"):
        open_data(str(tmp_path), options())


def damaged_copies(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Random damage: bytes changed, cut, doubled, zeroed, and numbers set to their extremes."""
    rng = random.Random(seed)
    for _ in range(count):
        copy = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at, length = rng.randrange(len(copy)), rng.choice([1, 4, 12, 100])
            twice, digits = bytes(copy[at : at + length]) * 2, b"9" * length
            copy[at : at + length] = rng.choice(
                [rng.randbytes(length), b"\xff" * length, bytes(length), digits, twice, b""]
            )
            if not copy:
                break
        yield bytes(copy[: rng.randrange(len(copy) + 1)] if rng.random() < 0.1 else copy)


def test_random_damage_to_tar_files_is_told_or_harmless() -> None:
    content = pax(record("path", "a.png")) + IMAGE + header("@LongLink", 8, b"L") + padded(b"a.cls\0xx") + LABEL + END
    told = 0
    for copy in damaged_copies(content, 400, 0):
        began = time.monotonic()
        try:
            found = list(members(io.BytesIO(copy), len(copy)))
        except Damaged:
            told += 1
        else:
            assert all(m.offset >= 0 and m.offset + m.size <= len(copy) for m in found)
        assert time.monotonic() - began < SECONDS
    assert 100 < told < 400


@pytest.mark.parametrize("file", ["index.json", "train.members.npy", "train-0.tar"])
def test_random_damage_to_a_packed_set_is_told_or_harmless(file: str, tmp_path: Path) -> None:
    shard_set(tmp_path)
    content = (tmp_path / file).read_bytes()
    for copy in damaged_copies(content, 60, len(file)):
        (tmp_path / file).write_bytes(copy)
        with bounded():
            said = ""
            try:
                part = packed.source(tmp_path, packed.index_of(tmp_path)).train
                for position in range(len(part)):
                    part.read(position)  # type: ignore[union-attr]
            except StarfireError as error:
                said = str(error)
            assert "\n" not in said


def far(url: str) -> dict[str, Any]:
    """What a checkpoint says of its data."""
    meta = {"name": "folder", "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 16}
    return meta | {"spec": url}


@pytest.mark.parametrize(
    "form", ["{}", "webdataset:{}", "{}/index.json", "{}/train-{{0..3}}.tar", "webdataset:{}/t.tar"]
)
def test_no_url_is_opened_because_a_file_says_so(form: str, tmp_path: Path) -> None:
    with served(shard_set(tmp_path)) as (url, asked):
        with pytest.raises(BadOption, match=r"no URL is opened unasked; --data .*http://127"):
            open_val(far(form.format(url)), None, options())
        assert asked == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one step."""
    out = tmp_path_factory.mktemp("runs")
    how = ["--limit-train", "64", "--limit-val", "20", "--device", "cpu", "--epochs", "1", "--era", "0:1", "--quiet"]
    assert main(["train", "--max-steps", "1", *how, "--out", str(out), "--name", "a"]) == 0
    return out / "a" / "last.pt"


@pytest.mark.parametrize("command", ["attack", "prune-mask", "inspect", "compress", "train --resume"])
def test_no_command_opens_a_url_that_a_checkpoint_names(
    command: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "last.pt"
    content = torch.load(checkpoint, weights_only=True)
    with served(tmp_path) as (url, asked):
        content["meta"]["data"]["spec"] = content["meta"]["request"]["data"] = f"webdataset:{url}"
        torch.save(content, file)
        options_of = {
            "attack": ["attack", file, "--eps", "0", "--device", "cpu"],
            "prune-mask": ["prune-mask", file, "--target", "0.5", "--evaluate", "-o", tmp_path / "p.pt"],
            "inspect": ["inspect", file, file, "--evaluate"],
            "compress": ["compress", file, "--values", "bf16", "-o", tmp_path / "c.sfc"],
            "train --resume": ["train", "--resume", file],
        }
        capsys.readouterr()
        code = main([str(word) for word in options_of[command]])
        said = "".join(capsys.readouterr())
        # compress has done its work by then, and says why it has not measured what it cost.
        assert asked == [] and code == (0 if command == "compress" else 2) and f"--data webdataset:{url}" in said, said


def test_a_server_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def endless(url: str) -> Iterator[Any]:
        with open("/dev/zero", "rb") as stream:
            yield stream

    monkeypatch.setattr(remote, "opened", endless)
    with pytest.raises(StarfireError, match=r"longer than the 5,000,000 bytes"):
        remote.content("http://127.0.0.1/index.json", 5_000_000)


def test_a_cache_that_lies_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARFIRE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    shard_set(folder)
    (folder / "index.json").unlink()
    expected = tarset.source(folder).train
    (file,) = (tmp_path / "cache" / cache.OWN).iterdir()
    kept = cache.read(file)
    assert kept is not None
    kept["rows"][0, 1] = 2**62
    assert cache.write(file, kept) is None
    again = tarset.source(folder).train
    assert again.size.tolist() == expected.size.tolist() == [len(png())] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "braces", ["{0..999999999}", "{0..9999}{0..9999}", "{a..z}" * 6, "{0000..9999}.tar::http://h/{0..999999}"]
)
def test_braces_that_mean_millions(braces: str) -> None:
    with bounded(), pytest.raises(BadOption, match="more than 1,000,000 shards"):
        find(f"http://127.0.0.1:9/{braces}.tar")


def test_a_shard_that_never_ends_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def endless(url: str) -> Iterator[Any]:
        with open("/dev/zero", "rb") as stream:
            yield stream

    monkeypatch.setattr(remote, "opened", endless)
    spool = Spool(folder=tmp_path, urls=("http://h/a.tar",), lengths=(10**6,), checksums=("0" * 64,))
    spool.fetch(0, Event())
    with pytest.raises(StarfireError, match="is not what the index says"):
        spool.wait(0, 100)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1000


def test_only_whole_shards_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARFIRE_SPOOL", "0")
    spool = Spool(folder=tmp_path, urls=("http://h/a.tar",) * 2, lengths=(5, 5), checksums=("ab" * 32,) * 2)
    theirs = ["backup.tar", "000000.tar", "000000-ABABABABABABABAB.tar", "000001-abababababababab.tar.part"]
    for name in theirs:
        (tmp_path / name).write_bytes(b"12345")
    spool.file(0).write_bytes(b"12345")
    spool.file(1).symlink_to(tmp_path / "backup.tar")
    spool.make_room(set())
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*theirs, spool.file(1).name])
    for given in ("nan", "-1", "much"):
        monkeypatch.setenv("STARFIRE_SPOOL", given)
        with pytest.raises(StarfireError, match=f"STARFIRE_SPOOL='{given}' must be a number of GB, 0 or more"):
            limit()


def test_a_file_too_long_for_an_image(tmp_path: Path) -> None:
    from tests.helpers.data_layouts import train_and_val

    train_and_val(tmp_path, size=(100, 100))
    with open(tmp_path / "train" / "cat" / "003.png", "r+b") as file:
        file.truncate(2**40)  # of which nothing is on the disk
    with bounded(), pytest.raises(StarfireError, match=r"003\.png \(1,099,511,627,776 bytes are too many"):
        list(open_data(str(tmp_path), options(image_size=32, augment="none")).train.batches(0))


@pytest.mark.parametrize(
    "lie",
    [
        {"image_size": 2**62},
        {"image_size": 0},
        {"image_size": -5},
        {"image_size": float("inf")},
        {"image_size": "large"},
        {"image_size": None},
        {"stored": 2**31},
        {"resize": 1},
        {"resize": float("nan")},
        {"mean": [float("nan")] * 3},
        {"std": [0.0] * 3},
        {"std": [10**400] * 3},
        {"mean": 5},
        {"val_fraction": 2.0},
        {"val_fraction": []},
        {"split_seed": float("inf")},
        {"classes": "ab"},
        {"classes": 7},
        {"spec": "a\0b/c"},
        {"spec": "\ud800/c"},
        {"spec": ""},
        {"spec": "folder:" + "x" * 5000},
    ],
)
def test_a_checkpoint_that_lies_about_its_data(lie: dict[str, Any], tmp_path: Path) -> None:
    meta = far(str(shard_set(tmp_path))) | lie
    with bounded(), pytest.raises(StarfireError, match=r"the checkpoint's (record of its data is damaged|data cannot)"):
        open_val(meta, None, options())


@pytest.mark.parametrize("meta", ["text", 5, [1], {"name": "x"}])
def test_a_record_of_data_that_is_none(meta: Any) -> None:
    with pytest.raises(DamagedFile, match="record of its data is damaged"):
        open_val(meta, None, options())


def test_a_huge_size_of_what_was_kept_takes_no_memory(tmp_path: Path) -> None:
    from tests.helpers.data_layouts import train_and_val

    data = open_data(str(train_and_val(tmp_path)), options())
    with bounded():
        info, split = open_val(data.info.as_meta() | {"stored": 2**14}, None, options())
    assert info.stored == 20 and len(split) == 8


def test_a_validation_part_without_images(tmp_path: Path) -> None:
    folder = shard_set(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    buffer = io.BytesIO()
    np.save(buffer, np.empty(0, dtype=packed.MEMBER))
    (folder / "val.members.npy").write_bytes(buffer.getvalue())
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    index["parts"]["val"] = {"members": "val.members.npy", "sha256": sha256, "shards": []}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(StarfireError, match="validation part has no images"):
        open_data(str(folder), options(batch_size=1))
