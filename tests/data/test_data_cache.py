from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from starfire_cli.data import cache, open_data
from starfire_cli.data.finding import find
from starfire_cli.data.images import decode_cache as once
from starfire_cli.data.images.workers import ImageReader
from starfire_cli.data.source import Files
from starfire_cli.errors import BadOption
from tests.helpers.data_layouts import class_folders, options, picture


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STARFIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 10)
    return tmp_path / "cache" / cache.OWN


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = find(str(class_folders(tmp_path / "set", ("a", "b"), 8))).train
    assert isinstance(found, Files)
    return found


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were decoded, one entry each time."""
    counts: list[int] = []
    original = once.read_all

    def counting(reader: ImageReader, *rest: object) -> object:
        counts.append(len(reader.files))
        return original(reader, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(once, "read_all", counting)
    return counts


def test_images_are_decoded_once_and_come_back_the_same(files: Files, decodings: list[int], place: Path) -> None:
    first, _, _ = once.decoded(files, 20, options())
    again, _, _ = once.decoded(files, 20, options())
    assert decodings == [16] and torch.equal(first.images, again.images) and len(list(place.iterdir())) == 1
    once.decoded(files, 24, options())
    assert decodings == [16, 16]  # another size is another file


def test_a_changed_image_is_noticed(files: Files, decodings: list[int]) -> None:
    first, _, _ = once.decoded(files, 20, options())
    time = os.stat(files.path(3)).st_mtime_ns
    picture(999).save(files.path(3))
    os.utime(files.path(3), ns=(time, time + 1))
    again, _, _ = once.decoded(files, 20, options())
    assert decodings == [16, 16] and (first.images != again.images).flatten(1).any(1).nonzero().tolist() == [[3]]


@pytest.mark.parametrize("how", ["cut", "flip", "text", "other"])
def test_a_damaged_file_is_made_anew(files: Files, decodings: list[int], place: Path, how: str) -> None:
    first, _, _ = once.decoded(files, 20, options())
    (file,) = place.iterdir()
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[:-100])
    elif how == "flip":
        content[-5000] ^= 1
        file.write_bytes(content)
    elif how == "text":
        file.write_text("no tensors here")
    else:
        cache.save(file, torch.zeros(16, 3, 8, 8, dtype=torch.uint8))
    again, _, notes = once.decoded(files, 20, options())
    assert decodings == [16, 16] and torch.equal(first.images, again.images) and notes == ()
    once.decoded(files, 20, options())
    assert len(decodings) == 2


def test_a_place_that_cannot_be_written_is_a_note(files: Files, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.parent.write_text("a file where the folder should be")
    pixels, _, notes = once.decoded(files, 20, options())
    assert len(pixels) == 16 and "not kept" in notes[0] and "STARFIRE_CACHE" in notes[0]


def test_a_full_disk_leaves_nothing_behind(files: Files, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    _, _, notes = once.decoded(files, 20, options())
    assert "No space left" in notes[0] and list(place.iterdir()) == []


@pytest.mark.parametrize("value", ["off", ""])
def test_the_cache_can_be_switched_off(files: Files, place: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("STARFIRE_CACHE", value)
    monkeypatch.chdir(files.root)
    assert once.decoded(files, 20, options())[2] == () and not place.parent.exists()
    assert sorted(p.name for p in files.root.iterdir()) == ["a", "b"]


def test_the_usual_place_is_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STARFIRE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache.folder() == tmp_path / "starfire"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache.folder() == Path("~/Library/Caches/starfire").expanduser()
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache.folder() == tmp_path / "local" / "starfire" / "Cache"


def test_the_oldest_files_make_room(files: Files, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in (16, 17, 18):
        once.decoded(files, side, options())
    by_side = {side: cache.key(files, side) for side in (16, 17, 18, 19)}
    for age, side in enumerate((17, 16, 18)):
        assert by_side[side] is not None
        os.utime(by_side[side], (1e9 + age, 1e9 + age))  # type: ignore[arg-type]
    monkeypatch.setattr(cache, "LIMIT", sum(f.stat().st_size for f in place.iterdir()))
    once.decoded(files, 19, options())
    assert [side for side, file in by_side.items() if file is not None and file.exists()] == [18, 19]


def test_sets_with_corrupt_images_and_small_sets_are_not_kept(files: Files, place: Path) -> None:
    Path(files.path(2)).write_text("broken")
    _, skipped, _ = once.decoded(files, 20, options(skip_corrupt=True))
    assert skipped == 1 and not place.exists()
    assert cache.key(files.take(files.labels == 0), 20) is None


def test_opening_uses_the_cache(files: Files, decodings: list[int]) -> None:
    for _ in range(2):
        data = open_data(str(files.root), options(val_fraction=0.25))
        assert len(data.train) == 12
    assert decodings == [12, 4, 4]  # the four held out are too few to be kept


def theirs(folder: Path, size: int = 5000) -> dict[Path, bytes]:
    """Files that nobody may touch: older than any of ours, some with names that look like ours."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["resnet50.safetensors", "model-00001-of-00002.safetensors", "a-16x20-0123456789abcdef01234567.pt"]
    names += ["a-16x20-0123456789ABCDEF01234567.safetensors", "x.listing.safetensors", "thesis.tex", ".hidden"]
    names += ["a-16x20-0123456789abcdef01234567.safetensors.partial", "\x1b[31m-0123456789abcdef01234567.safetensors"]
    for age, name in enumerate(names):
        (folder / name).write_bytes(bytes([age]) * size)
        os.utime(folder / name, (age, age))
    return {folder / name: bytes([age]) * size for age, name in enumerate(names)}


def test_files_of_the_user_are_never_removed(files: Files, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 1)
    ours_by_name = "a-16x20-0123456789abcdef01234567.safetensors"
    outside = theirs(place.parent) | {place.parent / ours_by_name: b"from before there was a folder of our own"}
    (place.parent / ours_by_name).write_bytes(outside[place.parent / ours_by_name])
    inside = theirs(place)
    (place / ours_by_name).symlink_to(place.parent / "resnet50.safetensors")  # what a link leads to is not ours
    (place / "b-16x20-0123456789abcdef01234567.safetensors").mkdir()
    for side in (16, 17):
        once.decoded(files, side, options())
    assert {file: file.read_bytes() for file in outside | inside} == outside | inside
    assert (place / ours_by_name).is_symlink() and (place / "b-16x20-0123456789abcdef01234567.safetensors").is_dir()
    first, second = cache.key(files, 16), cache.key(files, 17)
    assert first is not None and second is not None and not first.exists() and second.exists()  # ours do go


def test_files_of_another_user_stay(files: Files, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once.decoded(files, 16, options())
    monkeypatch.setattr(cache, "LIMIT", 1)
    monkeypatch.setattr("os.getuid", lambda: os.stat(place).st_uid + 1)
    once.decoded(files, 17, options())
    assert len(list(place.iterdir())) == 2


def test_two_that_make_room_at_once(files: Files, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in (16, 17):
        once.decoded(files, side, options())
    monkeypatch.setattr(cache, "LIMIT", 1)
    unlink = Path.unlink

    def raced(self: Path, missing_ok: bool = False) -> None:
        unlink(self)
        unlink(self, missing_ok)  # the other one was faster

    monkeypatch.setattr(Path, "unlink", raced)
    assert once.decoded(files, 18, options())[2] == ()
    assert [file.name for file in place.iterdir()] == [key.name for key in [cache.key(files, 18)] if key]


@pytest.mark.parametrize("title", ["a" * 300, "\x1b[31m\n", "../up", "caf\xe9", "\udcff"])
def test_names_of_folders_do_not_matter(title: str, place: Path) -> None:
    file = place / cache.named(title, "0" * 24)
    assert file.parent == place and file.name.isascii() and file.name.isprintable() and len(file.name) < 200
    assert cache.write(file, {"a": torch.arange(3)}) is None
    assert list(place.iterdir()) == [file]
    found = cache.read(file)
    assert found is not None and found["a"].tolist() == [0, 1, 2]


def test_a_home_that_is_not_there(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARFIRE_CACHE", "~nobody-of-that-name/cache")
    with pytest.raises(
        BadOption, match=r"STARFIRE_CACHE=~nobody-of-that-name/cache: there is no home folder ~nobody-of-that-name"
    ):
        cache.folder()
    monkeypatch.delenv("STARFIRE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache.folder() is None


def test_a_cache_that_may_not_be_read_is_not_removed(
    files: Files, place: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[int]
) -> None:
    once.decoded(files, 20, options())
    before = list(place.iterdir())

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("safetensors.safe_open", refused)
    monkeypatch.setattr(cache, "write", lambda file, tensors: None)
    once.decoded(files, 20, options())
    assert decodings == [16, 16] and list(place.iterdir()) == before


def test_only_our_temporary_files_are_removed(tmp_path: Path) -> None:
    from starfire_cli.formats.atomic import write_text

    names = ["notes.tmp", "a-b-c.tmp", "laptop-4194304-backup.tmp", "my-laptop-4194304-1.tmp", "x--1.tmp"]
    theirs = [tmp_path / f".run.json.{name}" for name in names]
    stale = tmp_path / ".run.json.laptop-4194304-1.tmp"  # of a process that is not, on another host, years ago
    for file in (*theirs, stale):
        file.write_text("mine")
        os.utime(file, (1e9, 1e9))
    write_text(tmp_path / "run.json", "{}")
    assert sorted(tmp_path.iterdir()) == sorted([*theirs, tmp_path / "run.json"])
