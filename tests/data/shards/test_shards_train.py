from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from starfire_cli.data import Data, cache, open_data, open_val, opening, recognise
from starfire_cli.data.images import decode
from starfire_cli.data.images import input_pipeline as road
from starfire_cli.data.shards import layout as shards
from starfire_cli.data.shards import readahead as ahead
from starfire_cli.data.shards import spool
from starfire_cli.errors import BadOption, StarfireError
from tests.helpers import shard_sets
from tests.helpers.data_layouts import class_folders, options
from tests.helpers.shard_sets import members, served, starfire, tar

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STARFIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(road, "SAMPLE", 3)
    monkeypatch.setattr(opening, "STATS_SAMPLE", 3)
    return tmp_path / "cache" / cache.OWN


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_sets.images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "set"
    shard_sets.packed(source, out, short_side=0, shard_size="3")
    return out


def opened(where: Path | str, **how: Any) -> Data:
    return open_data(str(where), options(**({"image_size": 32} | how)))


def same(first: Batches, second: Batches) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(first, second, strict=True)
    )


def fingerprints(batches: Batches) -> list[float]:
    return sorted(float(image.double().sum()) for images, _ in batches for image in images)


def test_shards_hold_the_images_of_the_folder(source: Path, packed: Path) -> None:
    ours, folder = opened(packed, augment="none"), opened(source, augment="none")
    assert ours.info.name == "webdataset" and ours.info.classes == folder.info.classes
    for part in ("train", "val"):
        first, second = (list(getattr(data, part).batches(0)) for data in (ours, folder))
        assert fingerprints(first) == fingerprints(second)
        assert sorted(torch.cat([labels for _, labels in first])) == sorted(torch.cat([labels for _, labels in second]))


def test_workers_and_a_start_in_the_middle_change_nothing(packed: Path) -> None:
    here = list(opened(packed).train.batches(2))
    assert same(here, list(opened(packed, workers=2).train.batches(2)))
    for start in (1, 5):
        assert same(here[start:], list(opened(packed, workers=1).train.batches(2, start=start)))
    assert not same(here, list(opened(packed).train.batches(3)))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_every_batch(packed: Path, ranks: int) -> None:
    alone = list(opened(packed, batch_size=5).train.batches(1))
    shares = [list(opened(packed, batch_size=5, rank=r, ranks=ranks).train.batches(1)) for r in range(ranks)]
    for step, (images, labels) in enumerate(alone):
        for rank in range(ranks):
            assert torch.equal(shares[rank][step][0], images[rank::ranks])
            assert torch.equal(shares[rank][step][1], labels[rank::ranks])


def test_small_images_are_decoded_once_from_shards_too(tmp_path: Path, cached: Path) -> None:
    source = class_folders(tmp_path / "images", ("a", "b"), 10)
    shard_sets.packed(source, tmp_path / "out")
    data, folder = opened(tmp_path / "out", image_size=None), opened(source, image_size=None)
    assert data.info.stored == 20 and len(data.train) == len(folder.train) == 16  # a share is held out of either
    everything = [list(d.train.batches(0)) + list(d.val.batches(0)) for d in (data, folder)]
    assert len(fingerprints(everything[0])) == 20


def test_recipes_know_what_was_packed(packed: Path, source: Path) -> None:
    assert recognise(str(packed)) == recognise(str(source)) == ("folder", 150)
    with served(packed) as (url, _):
        assert recognise(url) == ("folder", 150)


def test_a_checkpoint_finds_packed_images_again(packed: Path) -> None:
    data = opened(packed)
    info, split = open_val(data.info.as_meta(), None, options())
    assert info.spec == f"webdataset:{packed}" and same(list(split.batches(0)), list(data.val.batches(0)))


@pytest.mark.parametrize("limit", ["20", "0.00003"])
def test_over_http_it_is_the_same(packed: Path, cached: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Also where nearly nothing may stay on the disk."""
    pytest.importorskip("webdataset")
    monkeypatch.setenv("STARFIRE_SPOOL", limit)
    monkeypatch.setattr(ahead, "AT_ONCE", 2)
    monkeypatch.setattr(shards, "AT_ONCE", 2)
    monkeypatch.setattr(ahead, "MARGIN", 0)
    local = opened(packed)
    with served(packed) as (url, asked):
        data = opened(url, workers=2)
        assert data.info.spec == f"webdataset:{url}"
        before = len([path for path in asked if path.endswith(".tar")])
        for epoch in (0, 1):
            assert same(list(local.train.batches(epoch)), list(data.train.batches(epoch)))
            assert len(list(cached.glob("shards/*/*.tar"))) <= (8 if limit == "20" else 7)
        assert same(list(local.train.batches(1, start=4)), list(data.train.batches(1, start=4)))
        assert same(list(local.val.batches(0)), list(data.val.batches(0)))
        tars = [path for path in asked if path.endswith(".tar")]
        assert before < 8 and (len(tars) == len(set(tars))) == (limit == "20")  # kept, each comes once


def test_over_http_several_ranks_fetch_each_shard_once(packed: Path) -> None:
    pytest.importorskip("webdataset")
    alone = list(opened(packed).train.batches(0))
    with served(packed) as (url, asked):
        both = [opened(url, rank=r, ranks=2).train.batches(0) for r in range(2)]
        for (images, _), first, second in zip(alone, *both, strict=True):
            assert torch.equal(images[::2], first[0]) and torch.equal(images[1::2], second[0])
        tars = [path for path in asked if "train-" in path and path.endswith(".tar")]
    assert len(tars) == len(set(tars)) == 8


def test_shards_of_others(source: Path, tmp_path: Path, packed: Path) -> None:
    wds = pytest.importorskip("webdataset")
    folder = tmp_path / "theirs"
    folder.mkdir()
    for part in ("train", "val"):
        with wds.ShardWriter(str(folder / f"set-{part}-%03d.tar"), maxcount=5, verbose=0) as sink:
            for number, file in enumerate(sorted(source.glob(f"{part}/*/*.jpg"))):
                label = int(file.parent.name == "dog")
                sink.write({"__key__": f"{number:05d}", "jpg": file.read_bytes(), "cls": label, "json": {"x": 1}})
    local = opened(folder, augment="none")
    assert local.info.classes == ("0", "1") and (len(local.train), len(local.val)) == (24, 8)
    assert fingerprints(list(local.train.batches(0))) == fingerprints(
        list(opened(source, augment="none").train.batches(0))
    )
    with served(folder) as (url, asked):
        spec = f"webdataset:{url}/set-train-{{000..004}}.tar::{url}/set-val-{{000..001}}.tar"
        data = opened(spec, augment="none")
        assert same(list(local.train.batches(0)), list(data.train.batches(0)))
        count = len(asked)
        again = opened(spec, augment="none")  # the index and the shards are remembered
        assert same(list(local.train.batches(1)), list(again.train.batches(1))) and len(asked) == count


def test_training_from_shards_resumes_to_the_bit(packed: Path, tmp_path: Path) -> None:
    how = ["--data", packed, "--image-size", 32, "--model", "resnet20", "--batch-size", 4, "--epochs", 2, "--device"]
    how += ["cpu", "--era", "0:1", "--method", "window", "--target", 0.3, "--workers", 1, "--quiet"]
    assert starfire("train", *how, "--out", tmp_path / "runs", "--name", "whole") == 0
    assert starfire("train", *how, "--out", tmp_path / "runs", "--name", "cut", "--max-steps", 9) == 0
    assert starfire("train", "--resume", tmp_path / "runs" / "cut", "--max-steps", 12, "--quiet") == 0
    first, second = (
        torch.load(tmp_path / "runs" / n / "last.pt", weights_only=True)["model"] for n in ("whole", "cut")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def edited(packed: Path, tmp_path: Path, **changes: Any) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    index = json.loads((copy / "index.json").read_text())
    for path, value in changes.items():
        *above, last = path.split("__")
        inner = index
        for key in above:
            inner = inner[int(key) if key.isdigit() else key]
        inner[last] = value
    (copy / "index.json").write_text(json.dumps(index))
    return copy


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": 9}, "version 9"),
        ({"parts__train__shards__0__name": "../../etc/passwd.tar"}, "no name of a shard"),
        ({"parts__train__members": "/etc/passwd"}, "no name of a shard"),
        ({"parts__train__sha256": "0" * 64}, "damaged"),
        ({"parts__train__shards__0__images": 4}, "does not fit"),
        ({"classes": ["cat"]}, "does not fit"),
        ({"classes": None}, "damaged: classes"),
        ({"parts": {}}, "no training part"),
    ],
)
def test_an_index_that_lies(packed: Path, tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(StarfireError, match=text):
        opened(edited(packed, tmp_path, **changes))


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_shards_that_are_not_whole(packed: Path, tmp_path: Path, how: str) -> None:
    shutil.copytree(packed, tmp_path / "copy")
    shard = tmp_path / "copy" / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-5000]) if how == "cut" else shard.unlink()
    with pytest.raises(StarfireError, match=rf"train-000002.tar.*{'cut off' if how == 'cut' else 'missing'}"):
        opened(tmp_path / "copy")


def test_others_shards_that_cannot_be_used(tmp_path: Path, packed: Path) -> None:
    good = members(packed / "train-000000.tar")
    image = next(data for name, data in good.items() if name.endswith("jpg"))
    for content, text in (
        ({"a.jpg": image, "a.cls": b"x"}, "no whole number"),
        ({"a.jpg": image}, "no .cls"),
        ({"a.jpg": image, "a.cls": b"-1"}, "class number -1"),
        ({"a.txt": b"words"}, "no image"),
    ):
        tar(tmp_path / "theirs" / "x.tar", content)
        with pytest.raises(StarfireError, match=text):
            opened(f"webdataset:{tmp_path / 'theirs'}")
    file = tar(tmp_path / "theirs" / "x.tar", {"a.jpg": image, "a.cls": b"1"})
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(StarfireError, match=r"x.tar is damaged: .*cut off"):
        opened(f"webdataset:{tmp_path / 'theirs'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StarfireError, match=r"no \.tar files"):
        opened(f"webdataset:{tmp_path / 'empty'}")


def test_a_shard_that_gets_its_name_just_then(packed: Path, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the word of a file that is long enough and its opening, the file may have been renamed."""
    pytest.importorskip("webdataset")
    wait, gone = spool.Spool.wait, [f"{packed}/was.part"] * 3
    monkeypatch.setattr(spool.Spool, "wait", lambda *args: gone.pop() if gone else wait(*args))
    with served(packed) as (url, _):
        assert same(list(opened(packed).train.batches(0)), list(opened(url, workers=0).train.batches(0)))
    assert not gone


def test_a_problem_is_whole_when_it_is_read(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")

    def slowly(path: Path, text: str) -> int:
        path.touch()
        time.sleep(0.2)
        return path.write_bytes(text.encode())

    shutil.copytree(packed, tmp_path / "copy")
    (tmp_path / "copy" / "train-000005.tar").unlink()
    with served(tmp_path / "copy") as (url, _):
        data = opened(url, workers=0)
        monkeypatch.setattr(Path, "write_text", slowly)
        with pytest.raises(StarfireError, match="HTTP 404"):
            list(data.train.batches(0))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["missing", "changed"])
def test_remote_shards_that_are_not_whole(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, how: str
) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr(spool, "PATIENCE", 60)
    shutil.copytree(packed, tmp_path / "copy")
    shard = tmp_path / "copy" / "train-000005.tar"
    if how == "missing":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[1000] ^= 1
        shard.write_bytes(content[: len(content) // 2])
    text = "train-000005.tar cannot be read: HTTP 404" if how == "missing" else "train-000005.tar is not what the index"
    with served(tmp_path / "copy") as (url, _):
        data = opened(url, workers=workers, augment="none")
        with pytest.raises(StarfireError, match=text) as caught:
            list(data.train.batches(0))
    assert "\n" not in str(caught.value)


def test_servers_that_are_not_there(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    with served(tmp_path) as (url, _), pytest.raises(StarfireError, match=r"index.json cannot be read: HTTP 404"):
        opened(f"webdataset:{url}")
    with pytest.raises(StarfireError, match=r"cannot be read: .*refused"):
        opened(f"{url}/set-{{0..3}}.tar")


@pytest.mark.parametrize(
    "spec",
    [
        "pipe:touch {0}",
        "webdataset:pipe:touch {0}",
        "webdataset:http://x/$(touch {0}).tar",
        "http://x/`touch {0}`.tar",
        "http://x/';touch {0};'.tar",
        "file:///etc/passwd",
        "s3://-oProxy/x y",
        "webdataset:http://h/{{0..3}}.tar::pipe:touch {0}",
    ],
)
def test_no_spec_runs_a_command(spec: str, tmp_path: Path, packed: Path) -> None:
    marker = tmp_path / "ran"
    meta = opened(packed).info.as_meta() | {"spec": spec.format(marker)}
    with pytest.raises(BadOption):
        opened(spec.format(marker))
    with pytest.raises(StarfireError):
        open_val(meta, None, options())
    assert not marker.exists()


def test_s3_goes_through_the_aws_command_and_no_shell(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    aws = tmp_path / "bin" / "aws"
    aws.parent.mkdir()
    aws.write_text(f'#!/bin/sh\n[ "$1 $2 $4" = "s3 cp -" ] && exec /bin/cat "{packed}/${{3#s3://bucket/set/}}"\n')
    aws.chmod(0o755)
    monkeypatch.setenv("PATH", str(aws.parent))
    assert same(list(opened("s3://bucket/set").train.batches(0)), list(opened(packed).train.batches(0)))
    aws.unlink()
    with pytest.raises(StarfireError, match="aws is not installed"):
        opened("s3://bucket/set")


def test_without_torchcodec_others_decode(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(opened(packed).train.batches(0))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    got = list(opened(packed).train.batches(0))
    assert decode.jpeg_decoder()[0] != "torchcodec"
    assert all((a - b).abs().max() <= 3 / 255 for (a, _), (b, _) in zip(expected, got, strict=True))
    monkeypatch.undo()
    decode.select_decoder(much=False)
