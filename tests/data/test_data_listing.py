from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from starfire_cli.data import cache, listing, open_data, scan
from starfire_cli.data.sets.folder import class_names
from starfire_cli.data.source import Files
from tests.helpers.data_layouts import options, train_and_val

JPEG = b"\xff\xd8 not looked into \xff\xd9"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STARFIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "WORTH_KEEPING", 4)
    monkeypatch.setattr(listing, "SETTLED", -3600.0)  # the files here are seconds old
    return tmp_path / "cache" / cache.OWN


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    for name in ("set/b/2.jpg", "set/b/1.jpg", "set/a/deep/er/3.JPG", "set/a/0.png", "elsewhere/4.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "set" / "a" / "link").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "set"


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    done: list[Path] = []
    original = scan.class_files
    monkeypatch.setattr(scan, "class_files", lambda root, folders: (done.append(root), original(root, folders))[1])
    return done


def listed(root: Path) -> Files:
    files = listing.class_files(root, class_names(root))
    walked = sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
    )
    assert [os.fsdecode(name) for name in files.names] == walked
    assert [class_names(root)[label] for label in files.labels] == [name.partition("/")[0] for name in walked]
    return files


def test_a_listing_is_remembered(root: Path, scans: list[Path], place: Path) -> None:
    first, again = listed(root), listed(root)
    assert len(scans) == 1 and len(list(place.iterdir())) == 1
    assert first.names.dtype == again.names.dtype and first.labels.dtype == again.labels.dtype


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: (root / "b" / "9.jpg").write_bytes(JPEG),
    "removed": lambda root: (root / "a" / "0.png").unlink(),
    "renamed": lambda root: (root / "b" / "1.jpg").rename(root / "b" / "7.jpg"),
    "added deep below": lambda root: (root / "a" / "deep" / "er" / "9.jpg").write_bytes(JPEG),
    "added behind a link": lambda root: (root.parent / "elsewhere" / "9.jpg").write_bytes(JPEG),
    "a class more": lambda root: ((root / "c").mkdir(), (root / "c" / "9.jpg").write_bytes(JPEG)),
    "a folder gone": lambda root: ((root / "a" / "deep" / "er" / "3.JPG").unlink(), (root / "a/deep/er").rmdir()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_noticed(root: Path, scans: list[Path], change: Callable[[Path], object]) -> None:
    listed(root)
    time.sleep(0.03)  # longer than a tick of the file system's clock
    change(root)
    listed(root)
    listed(root)
    assert len(scans) == 2


def test_a_time_of_change_that_was_set_back_does_not_deceive(root: Path, scans: list[Path]) -> None:
    listed(root)
    before = os.stat(root / "b")
    time.sleep(0.03)
    (root / "b" / "9.jpg").write_bytes(JPEG)
    os.utime(root / "b", ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and tar do
    listed(root)
    assert len(scans) == 2


@pytest.mark.parametrize("how", ["cut", "flip", "text"])
def test_a_damaged_listing_is_made_anew(root: Path, scans: list[Path], place: Path, how: str) -> None:
    listed(root)
    (file,) = place.iterdir()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes({"cut": content[:-9], "flip": content, "text": b"no list here"}[how])
    listed(root)
    listed(root)
    assert len(scans) == 2


def test_what_was_changed_just_now_is_not_kept(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SETTLED", 2.0)
    listed(root)
    assert not place.exists()


def test_nothing_is_kept_where_that_is_off_or_too_little(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STARFIRE_CACHE", "off")
    listed(root)
    monkeypatch.setenv("STARFIRE_CACHE", str(place))
    monkeypatch.setattr(listing, "WORTH_KEEPING", 100)
    listed(root)
    assert not place.exists()


def test_a_place_that_cannot_be_written_stops_nothing(root: Path, place: Path) -> None:
    place.parent.write_text("a file where the folder should be")
    listed(root)


def test_training_opens_from_the_listing(tmp_path: Path, scans: list[Path]) -> None:
    place = train_and_val(tmp_path / "images")
    for _ in range(2):
        data = open_data(str(place), options(batch_size=4))
        assert (len(data.train), len(data.val)) == (20, 8)
    assert len(scans) == 2  # train/ and val/, once
    assert cache.read(None) is None


@pytest.mark.parametrize("how", ["zero", "type", "label", "shape", "others"])
def test_a_listing_that_lies_is_made_anew(root: Path, scans: list[Path], place: Path, how: str) -> None:
    first = listed(root)
    (file,) = place.iterdir()
    kept = cache.read(file)
    assert kept is not None
    if how == "zero":
        kept["names"][0, 1] = 0
    elif how == "type":  # the same bytes, and zeros among them that are none of the new type's
        names = torch.zeros(len(kept["names"]), 4 * kept["names"].shape[1], dtype=torch.uint8)
        names[:, 0], names[:, 2] = 46, 47
        kept["names"] = names[:, :4].contiguous().view(torch.float32)
    elif how == "label":
        kept["labels"][0] = 2**30
    elif how == "shape":
        kept["names"] = kept["names"].reshape(-1)
    else:
        kept["others"] = kept["others"][:1].clone()
    assert cache.write(file, kept) is None
    again = listed(root)
    assert len(scans) == 2 and again.names.tolist() == first.names.tolist()
