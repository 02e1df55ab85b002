from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from starfire_cli.data.finding import find
from starfire_cli.data.images import encode
from starfire_cli.data.shards import index as packed
from starfire_cli.data.shards.layout import Shards
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.workflows.data import pack as pack_data
from starfire_cli.workflows.data.request import PackRequest
from tests.helpers import shard_sets
from tests.helpers.data_layouts import picture
from tests.helpers.shard_sets import members, starfire, tar

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARFIRE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_sets.images(tmp_path_factory.mktemp("images"))


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_every_image_is_in_one_shard_with_its_class(source: Path, tmp_path: Path) -> None:
    end = shard_sets.packed(source, tmp_path / "out", short_side=0)
    assert (end.images, end.shards, end.skipped) == ({"train": 24, "val": 8}, 6, ())
    for part in ("train", "val"):
        expected = sorted((p.read_bytes(), b"%d" % (p.parent.name == "dog")) for p in source.glob(f"{part}/*/*.jpg"))
        found = []
        for file in sorted(tmp_path.glob(f"out/{part}-*.tar")):
            inside = members(file)
            assert len(inside) <= 14 and {name.partition(".")[2] for name in inside} == {"jpg", "cls"}
            found += [(inside[n], inside[n.replace("jpg", "cls")]) for n in inside if n.endswith("jpg")]
        assert sorted(found) == expected
        classes = [int(label) for _, label in found]
        assert classes not in (sorted(classes), sorted(classes, reverse=True))  # shuffled


def test_the_index_says_where_everything_is(source: Path, tmp_path: Path) -> None:
    shard_sets.packed(source, tmp_path / "out", short_side=64)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["classes"] == ["cat", "dog"] and index["short_side"] == 64
    part = find(str(tmp_path / "out")).train
    assert isinstance(part, Shards)
    position = 0
    for shard in index["parts"]["train"]["shards"]:
        data = (tmp_path / "out" / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        inside = members(tmp_path / "out" / shard["name"])
        for name in (n for n in inside if n.endswith("jpg")):
            assert part.read(position) == inside[name]
            assert part.labels[position] == int(inside[name.replace("jpg", "cls")])
            position += 1
    assert position == len(part) == 24


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_webdataset_reads_what_was_packed(source: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    shard_sets.packed(source, tmp_path / "out")
    shards = sorted(str(p) for p in tmp_path.glob("out/train-*.tar"))
    samples = list(wds.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "cls"))
    assert len(samples) == 24 and sorted(label for _, label in samples) == [0] * 12 + [1] * 12
    assert {image.size for image, _ in samples} == {(150, 120)}  # smaller than 256: kept
    gc.collect()


@pytest.mark.parametrize(("height", "width"), [(120, 150), (150, 120), (130, 130)])
def test_large_images_are_scaled_as_pillow_does(height: int, width: int) -> None:
    buffer = io.BytesIO()
    picture(3, height, width).save(buffer, "PNG")
    ending, data = encode.shrink_image(buffer.getvalue(), "x.png", 100, 95)
    with Image.open(io.BytesIO(data)) as image:
        assert (ending, image.format, min(image.size)) == ("jpg", "JPEG", 100)
        expected = picture(3, height, width).resize(image.size, Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)).mean() < 3
    assert encode.shrink_image(buffer.getvalue(), "x", 150, 95) == ("png", buffer.getvalue())


def test_workers_change_nothing_and_a_seed_does(source: Path, tmp_path: Path) -> None:
    shard_sets.packed(source, tmp_path / "one", short_side=80)
    shard_sets.packed(source, tmp_path / "two", short_side=80, workers=2)
    shard_sets.packed(source, tmp_path / "other", short_side=80, seed=1)
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two") and set(first) == set(contents(tmp_path / "other"))
    assert len(first) == 6 + 3 and not set(first.values()) & set(contents(tmp_path / "other").values())


def test_an_interrupted_packing_goes_on_where_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_sets.packed(source, tmp_path / "whole", short_side=0)
    request = PackRequest(source=str(source), out=tmp_path / "out", short_side=0, shard_size="7", workers=1)
    records = pack_data.pack(request)
    for _ in range(3):
        next(records)
    records.close()
    assert not (tmp_path / "out" / "index.json").exists() and not packed.is_packed(tmp_path / "out")
    first, second = tmp_path / "out" / "train-000000.tar", tmp_path / "out" / "train-000001.tar"
    times = first.stat().st_mtime_ns, second.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:-1000])  # as a disk may after a power cut
    with pytest.raises(StarfireError, match=r"with other options"):
        shard_sets.packed(source, tmp_path / "out", short_side=50)
    shard_sets.packed(source, tmp_path / "out", short_side=0)
    assert first.stat().st_mtime_ns == times[0] and second.stat().st_mtime_ns != times[1]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with pytest.raises(StarfireError, match="is a packed set already"):
        shard_sets.packed(source, tmp_path / "out", short_side=0)


def test_killed_in_the_middle(source: Path, tmp_path: Path) -> None:
    shard_sets.packed(source, tmp_path / "whole", short_side=0, shard_size="1")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "starfire_cli", "data", "pack", str(source), str(out)]
    process = subprocess.Popen([*command, "--short-side", "0", "--shard-size", "1"], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list(out.glob("*.tar"))) < 2 and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.1)  # its workers notice within a second
    for file in out.glob("*.tar"):
        assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()
    assert not (out / "index.json").exists()
    shard_sets.packed(source, out, short_side=0, shard_size="1")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_corrupt_image_is_named_or_left_out(tmp_path: Path) -> None:
    source = shard_sets.images(tmp_path / "images")
    broken = source / "train" / "dog" / "004.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    for short_side in (0, 50):
        for workers in (1, 2):
            with pytest.raises(StarfireError, match=r"corrupt image .*dog/004.jpg .*--skip-corrupt"):
                shard_sets.packed(source, tmp_path / f"{short_side}", short_side=short_side, workers=workers)
        end = shard_sets.packed(source, tmp_path / f"{short_side}s", short_side=short_side, skip_corrupt=True)
        assert end.images["train"] == 23 and len(end.skipped) == 1 and "dog/004.jpg" in end.skipped[0]


def test_what_others_packed_can_be_packed_anew(tmp_path: Path) -> None:
    source = shard_sets.images(tmp_path / "images")
    files = sorted(source.glob("train/*/*.jpg"))
    content = {}
    for i, file in enumerate(files):
        content |= {f"set/{i}.jpg": file.read_bytes(), f"set/{i}.cls": b"%d" % (file.parent.name == "dog")}
    tar(tmp_path / "theirs" / "a-train-0.tar", content)
    end = shard_sets.packed(f"webdataset:{tmp_path / 'theirs'}", tmp_path / "out", short_side=0)
    assert end.images == {"train": 24}
    found = find(str(tmp_path / "out"))
    assert found.val is None and found.classes == ("0", "1")
    assert sorted(found.train.read(i) for i in range(24)) == sorted(f.read_bytes() for f in files)


def test_limits(source: Path, tmp_path: Path) -> None:
    end = shard_sets.packed(source, tmp_path / "out", limit_train=10, limit_val=2)
    assert end.images == {"train": 10, "val": 2}


@pytest.mark.parametrize(
    ("size", "images"), [("7", 7), ("1GB", 24), ("20 kb", range(1, 12)), ("12b", None), ("0", None), ("-3", None)]
)
def test_sizes_of_shards(source: Path, tmp_path: Path, size: str, images: object) -> None:
    if images is None:
        with pytest.raises(BadOption, match="100MB"):
            shard_sets.packed(source, tmp_path / "out", shard_size=size)
        return
    shard_sets.packed(source, tmp_path / "out", shard_size=size)
    counts = [
        s["images"] for s in json.loads((tmp_path / "out" / "index.json").read_text())["parts"]["train"]["shards"]
    ]
    assert counts[0] == images or (isinstance(images, range) and counts[0] in images)
    assert sum(counts) == 24 and len(set(counts[:-1])) <= 1


def test_places_that_are_not_for_shards(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for arguments, code, text in (
        ((source, tmp_path / "full"), 1, "not empty"),
        ((source, tmp_path / "file"), 2, "is a file"),
        ((source, source / "out"), 2, "lies in"),
        ((tmp_path / "nowhere", tmp_path / "out"), 1, "there is no"),
        (("digits", tmp_path / "out"), 2, "packing is no use"),
    ):
        assert starfire("data", "pack", *arguments) == code
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"] and not (tmp_path / "out").exists()


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("starfire_cli.formats.shards._add", full)
    with pytest.raises(StarfireError, match="disk full"):
        shard_sets.packed(source, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {".packing"}


def test_the_command_in_a_pipe(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert starfire("data", "pack", source, tmp_path / "out", "--shard-size", 4, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["images"] == {"train": 24, "val": 8}
    assert "packed: 32 of 32 images" in said.err and f"starfire train --data {tmp_path / 'out'}" in said.err
    assert not (tmp_path / "out" / ".packing").exists() and os.listdir(tmp_path / "out").count("index.json") == 1


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[1]", b'{"bytes": 1}', b'{"bytes": [2], "members": [[1]]}', b"[" * 9999]
)
def test_a_damaged_record_of_an_interrupted_packing(source: Path, tmp_path: Path, content: bytes) -> None:
    request = PackRequest(source=str(source), out=tmp_path / "out", short_side=0, shard_size="7", workers=1)
    records = pack_data.pack(request)
    for _ in range(3):
        next(records)
    records.close()
    (tmp_path / "out" / pack_data.PROGRESS / "train-000000.json").write_bytes(content)
    assert shard_sets.packed(source, tmp_path / "out", short_side=0).images == {"train": 24, "val": 8}
    (tmp_path / "out" / "index.json").unlink()
    (tmp_path / "out" / pack_data.PROGRESS).mkdir()
    (tmp_path / "out" / pack_data.PROGRESS / "plan.json").write_bytes(b"\xff")
    with pytest.raises(StarfireError, match="interrupted packing of other data"):
        shard_sets.packed(source, tmp_path / "out", short_side=0)
