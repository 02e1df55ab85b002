"""Image files of all kinds: 16-bit ones read right, bombs refused, others counted, pipes left alone."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from starfire_cli.cli import main
from starfire_cli.data import cache, listing, open_data, open_val
from starfire_cli.data.finding import find, locate
from starfire_cli.data.images import decode, resample
from starfire_cli.errors import StarfireError
from tests.helpers.data_layouts import class_folders, idx, mnist, options, picture, train_and_val

VALUES = [0, 1, 255, 256, 32767, 32768, 65279, 65535]
WIDE = np.array([VALUES], dtype=np.uint16)


def pgm(depth: int, values: list[int], kind: bytes = b"P5") -> bytes:
    head = b"%s\n# a comment\n%d 1\n%d\n" % (kind, len(values), depth)
    if kind == b"P2":
        return head + " ".join(map(str, values)).encode()
    return head + b"".join(value.to_bytes(2 if depth > 255 else 1, "big") for value in values)


def saved(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(WIDE).save(buffer, form)
    return buffer.getvalue()


SIXTEEN: dict[str, bytes] = {
    "pgm": pgm(65535, VALUES),
    "plain pgm": pgm(65535, VALUES, b"P2"),
    "png": saved("PNG"),
    "tiff": saved("TIFF"),
}


@pytest.mark.parametrize("data", SIXTEEN.values(), ids=SIXTEEN.keys())
def test_images_of_16_bits_keep_their_upper_eight(data: bytes) -> None:
    expected = [[value >> 8 for value in VALUES]]
    assert decode.decode(data).tolist() == [expected] * 3


@pytest.mark.parametrize("depth", [256, 1000, 1023, 4095, 40000])
@pytest.mark.parametrize("kind", [b"P5", b"P2"])
def test_pgm_of_any_depth_is_scaled_to_white(depth: int, kind: bytes) -> None:
    values = [0, depth // 3, depth // 2, depth - 1, depth]
    found = decode.decode(pgm(depth, values, kind))[0, 0].tolist()
    assert found[0] == 0 and found[-1] == 255
    assert all(abs(seen - 255 * value / depth) <= 1 for seen, value in zip(found, values, strict=True))


def test_a_folder_of_16_bit_pgm_trains(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"{i}.pgm").write_bytes(b"P5\n8 8\n65535\n" + bytes([i, 200]) * 64)
    data = open_data(str(tmp_path), options(augment="none"))
    images = torch.cat([images for images, _ in data.train.batches(0)])
    assert sorted({round(float(v) * 255) for v in images.unique()}) <= [0, 1, 2, 3] and not data.train.skipped


def png(width: int, height: int, content: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def jpeg(width: int, height: int, before: bytes = b"") -> bytes:
    """A sound one whose header then claims another size."""
    buffer = io.BytesIO()
    picture(0).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data[:2]) + before + bytes(data[2:])


def other(form: str, size: tuple[int, int]) -> bytes:
    """A sound image of another format whose header then claims another size."""
    buffer = io.BytesIO()
    picture(0).save(buffer, form)
    data = bytearray(buffer.getvalue())
    if form == "GIF":
        data[6:10] = struct.pack("<HH", *size)
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", *size)
    else:
        return b"P6\n%d %d\n255\n" % size + bytes(100)
    return bytes(data)


BOMBS: dict[str, bytes] = {
    "png 50000": png(50_000, 50_000, zlib.compress(bytes(10**6))),
    "png 13000": png(13_000, 13_000, zlib.compress(bytes(10**6))),
    "png 2^31": png(2**31 - 1, 2**31 - 1),
    "jpeg 65500": jpeg(65_500, 65_500),
    "jpeg 12000": jpeg(12_000, 12_000),
    "jpeg behind fill bytes": jpeg(65_500, 65_500, b"\xff\xff\xff\xff\xfe\x00\x02"),
    "jpeg behind another marker": jpeg(65_500, 65_500, b"\xff\xd0"),
    "gif": other("GIF", (65_535, 65_535)),
    "bmp": other("BMP", (40_000, 40_000)),
    "ppm": other("PPM", (100_000, 100_000)),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
}


@pytest.mark.parametrize("much", [False, True])
@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_a_header_that_claims_more_than_there_is_takes_no_memory(data: bytes, much: bool) -> None:
    decode.select_decoder(much=much)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, hard))
    try:
        with decode.suppress_warnings(), pytest.raises(decode.Corrupt) as caught:
            decode.decode(data)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert "\n" not in str(caught.value) and "memory" not in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_large_pictures_are_no_bombs(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "LIKELY", 1000)
    buffer = io.BytesIO()
    picture(0, 300, 400).save(buffer, form)
    assert decode.decode(buffer.getvalue()).shape == (3, 300, 400)
    buffer = io.BytesIO()
    Image.new("L", (30, 30), 255).save(buffer, form)  # blank: few bytes, and few pixels
    assert decode.decode(buffer.getvalue()).shape == (3, 30, 30)


@pytest.mark.parametrize(("height", "width"), [(1, 40_000), (40_000, 1), (2, 9000)])
def test_a_line_of_pixels_stays_small(height: int, width: int) -> None:
    image = (torch.arange(3 * height * width) % 251).to(torch.uint8).view(3, height, width)
    scaled = resample.scale_short(image, 64)
    assert min(scaled.shape[1:]) == 64 and max(scaled.shape[1:]) <= 64 * 256
    middle = resample.centre_crop(scaled, 64)[:, 32, 32].double()
    assert min(height, width) > 1 or (middle - image[:, height // 2, width // 2].double()).abs().max() <= 2


@pytest.mark.parametrize("place", ["train/dog/pipe.jpg", "val/cat/pipe.png"])
def test_a_pipe_among_the_images_is_left_alone(place: str, tmp_path: Path) -> None:
    train_and_val(tmp_path)
    os.mkfifo(tmp_path / place)
    (tmp_path / place).with_name("link.jpg").symlink_to(tmp_path / place)
    done: list[int] = []
    reading = threading.Thread(target=lambda: done.append(len(open_data(str(tmp_path), options()).train)), daemon=True)
    reading.start()
    reading.join(20)
    assert done == [20]


def test_files_that_are_no_images_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_and_val(tmp_path)
    for i in range(3):
        (tmp_path / "train" / "cat" / f"{i}.HEIC").touch()
    (tmp_path / "train" / "dog" / "deep").mkdir()
    for name in ("deep/x.avif", "notes.txt", "README", ".hidden", "Thumbs.db", "._000.png"):
        (tmp_path / "train" / "dog" / name).touch()
    (tmp_path / "val" / "dog" / "y.heic").touch()
    expected = "passed over: 4 .heic, 1 without extension, 1 .avif, 1 .txt (images end in .jpg .jpeg"
    data = open_data(str(tmp_path), options())
    assert [note[: len(expected)] for note in data.info.notes if "passed" in note] == [expected]
    info, _ = open_val(data.info.as_meta(), None, options())
    assert [note for note in info.notes if note.startswith("passed over: 1 .heic (")]
    monkeypatch.setenv("STARFIRE_CACHE", str(tmp_path / "cache"))  # a listing that is remembered remembers them
    monkeypatch.setattr(listing, "WORTH_KEEPING", 1)
    monkeypatch.setattr(listing, "SETTLED", -60)
    for _ in range(2):
        train = find(str(tmp_path)).train
        assert train.others == {".heic": 3, ".avif": 1, ".txt": 1, "": 1}  # type: ignore[union-attr]
    assert list((tmp_path / "cache" / cache.OWN).iterdir())


def test_nothing_but_files_that_are_no_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.heic").touch()
    with pytest.raises(StarfireError, match=r"no image in any of its folders \(a, b\) \(passed over: 2 \.heic\)"):
        open_data(str(tmp_path), options())
    picture(0).save(tmp_path / "a" / "1.png")
    with pytest.raises(StarfireError, match=r"no image in class folder b \(passed over: 2 \.heic\)"):
        open_data(str(tmp_path), options())
    for name in ("x.heic", "y.heic"):
        (tmp_path / "a" / name).touch()
    with pytest.raises(StarfireError, match=r"1 images but no class folders \(passed over: 3 \.heic\)"):
        open_data(str(tmp_path / "a"), options())


def test_many_extensions_are_summed_up(tmp_path: Path) -> None:
    from starfire_cli.data import scan

    counts = {f".e{i}": 10 - i for i in range(8)}
    assert scan.ignored_text(counts) == "passed over: 10 .e0, 9 .e1, 8 .e2, 7 .e3, 6 .e4, 12 others"


def gzipped(raw: Path) -> None:
    for file in list(raw.iterdir()):
        (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def dotted(raw: Path) -> None:
    for file in list(raw.iterdir()):
        file.rename(raw / file.name.replace("-idx", ".idx"))


@pytest.mark.parametrize("how", [lambda raw: None, gzipped, dotted], ids=["bare", "gz", "dots"])
def test_bare_idx_files_are_recognised(how: Callable[[Path], None], tmp_path: Path) -> None:
    how(mnist(tmp_path / "files"))
    place = tmp_path / "files"
    with pytest.raises(StarfireError, match=f"--data fashion-mnist:{place} or --data mnist:{place}"):
        open_data(str(place), options())
    if how is gzipped:
        with pytest.raises(StarfireError, match="gunzip the files"):
            open_data(f"mnist:{place}", options())
    else:
        assert len(open_data(f"mnist:{place}", options()).train) == 30


@pytest.mark.parametrize(("folder", "name"), [("MNIST", "mnist"), ("FashionMNIST", "fashion-mnist")])
def test_a_folder_that_says_which_is_not_asked_about(folder: str, name: str, tmp_path: Path) -> None:
    raw = mnist(tmp_path / folder / "raw")
    for place in (raw, raw.parent, tmp_path):
        assert locate(str(place))[0] == name


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(b""), "damaged"),
        (lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12), "damaged"),
        (lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x0e\x01\0\0\0\x1e" + bytes(30)), "damaged"),
        (lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(b"\0" * 3), "damaged"),
        (lambda raw: idx(raw / "train-labels-idx1-ubyte", np.full(30, 10)), "class 10, and there are 10"),
        (lambda raw: idx(raw / "train-images-idx3-ubyte", np.zeros((30, 28, 20), dtype=np.int64)), "30x28x20"),
        (lambda raw: idx(raw / "train-images-idx3-ubyte", np.zeros((0, 28, 28), dtype=np.int64)), "damaged"),
        (lambda raw: idx(raw / "t10k-images-idx3-ubyte", np.zeros((10, 20, 20), dtype=np.int64)), "belong together"),
    ],
)
def test_idx_files_that_cannot_be_used(part: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    part(mnist(tmp_path))
    with pytest.raises(StarfireError, match=text) as caught:
        open_data(f"mnist:{tmp_path}", options())
    assert "\n" not in str(caught.value)


NAMES = ["a\x1b[31m\x07\n\u202e\x9b31m", "caf\xe9"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_do_not_reach_the_terminal_raw(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = class_folders(tmp_path / name, (name, "z"), 3, size=(20, 20))
    (root / name / f"{name}.{name}").touch()
    how = ["--device", "cpu", "--batch-size", "2", "--model", "resnet20", "--epochs", "1", "--era", "0:1"]
    out = ["--out", str(tmp_path / f"runs-{name}")]
    assert main(["train", "--data", str(root), *how, "--dry-run", "--target", "0.5"]) == 0
    assert main(["data", "pack", str(root), str(tmp_path / f"packed-{name}"), "-j", "1"]) == 0
    (root / name / "000.png").write_bytes(b"broken")
    assert main(["train", "--data", str(root), *how, *out]) == 1
    assert main(["train", "--data", str(root / name), *how, *out]) == 1
    said = "".join(capfd.readouterr())
    assert not [c for c in said if not c.isprintable() and c != "\n"]
    if name.isprintable():
        assert name in said
    else:
        assert "a\\x1b[31m\\x07\\n\\u202e\\x9b31m" in said


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        (["train", "--data", ""], {}, "--data '' is empty"),
        (["train", "--data", " "], {}, "--data ' ' is empty"),
        (["train", "--augment", ""], {}, "--augment '' is empty"),
        (["train", "--data", "~nobody-of-that-name/x"], {}, "no home folder ~nobody-of-that-name"),
        (["train", "--data", "folder:~nobody-of-that-name"], {}, "no home folder ~nobody-of-that-name"),
        (["train", "--data", "mnist"], {"STARFIRE_DATA": "~nobody-of-that-name"}, "STARFIRE_DATA=~nobody-of"),
        (["train", "--data", "."], {"STARFIRE_CACHE": "~nobody-of-that-name"}, "STARFIRE_CACHE=~nobody-of"),
        (["data"], {}, "starfire data: which command?"),
        (["data", "pack", "", "out"], {}, "is empty"),
        (["attack", "x.pt", "--data", ""], {}, ""),
    ],
)
def test_what_means_nothing_is_told_in_a_line(
    arguments: list[str],
    variables: dict[str, str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(class_folders(tmp_path, ("a", "b"), 3))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) != 0
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1 and "bug" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
