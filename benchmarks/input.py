"""Measures images a second that reach the network, beside torchvision's and timm's loaders on the same files.

    python benchmarks/input.py [--rows small,medium,large,large-eval,packed,decoders,start] [--images N] [--files N]
                               [--data ROW=FOLDER] [--out FILE.json]

Without --data the images are made here: smooth pictures with grain, JPEG quality 90, in class folders of 32 x 32, 64 x
64 or 500 x 400 pixels (about as many bytes as ImageNet's). Contenders take turns; figures are medians over the turns,
by the clock and by the processor time of this process and its workers, which says more on a busy machine. `open` is
what comes before the first batch: listing, and decoding once for small images (`again`: from the cache).

`packed` is the set of `large` after `starfire data pack --short-side 256`: starfire and the webdataset library read the
shards, torchvision and timm the same JPEGs as files. `decoders` decodes them in this process by everything at hand.
`start` lists a folder of --files names (hard links to a few files), first and again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _input_start
import numpy as np
import torch
import torchvision
from _common import where
from _input_peers import Epoch, peers, webdataset
from PIL import Image

from starfire_cli.data import DataOptions, open_data
from starfire_cli.data.finding import find
from starfire_cli.data.images import decode
from starfire_cli.data.shards.layout import Shards
from starfire_cli.workflows.data.pack import pack
from starfire_cli.workflows.data.request import PackRequest

ROWS = {  # height, width, side in the batch, crop, images
    "small": (32, 32, 32, "crop-flip", 10_000),
    "medium": (64, 64, 64, "rrc-flip", 5_000),
    "large": (400, 500, 224, "rrc-flip", 1000),
    "large-eval": (400, 500, 224, "eval", 1000),
    "packed": (400, 500, 224, "rrc-flip", 1000),
}
OTHERS = ("decoders", "start")
BATCH = 128


def make(folder: Path, height: int, width: int, count: int, different: int = 10_000) -> None:
    """Class folders with `count` images in all, and a validation part of the same images (by link).

    Beyond so many `different` ones they are hard links to those before.
    """
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 14, (height + 64, width + 64, 1)).astype(np.float32)

    def place_of(i: int) -> Path:
        return folder / "train" / f"class{i % 10}" / f"{i:06d}.jpg"

    for i in range(count):
        place = place_of(i)
        place.parent.mkdir(parents=True, exist_ok=True)
        if i >= different:
            place.hardlink_to(place_of(i % different))
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        y, x = rng.integers(0, 64, 2)
        picture = (smooth + grain[y : y + height, x : x + width]).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(place, quality=90)
    (folder / "val").symlink_to(folder / "train")


def pack_and_unpack(folder: Path, scratch: Path, row: dict[str, Any]) -> tuple[Path, Path]:
    """The set in shards, and the same JPEGs as files in class folders."""
    shards, files = scratch / "shards", scratch / "unpacked"
    started, spent = time.perf_counter(), processor()
    list(pack(PackRequest(source=f"folder:{folder}", out=shards, shard_size="5MB", limit_val=2)))
    row["pack_seconds"] = round(time.perf_counter() - started, 2)
    row["pack_per_core_second"] = round((row["images"] + 2) / (processor() - spent))
    part = find(str(shards)).train
    assert isinstance(part, Shards)
    for position in range(len(part)):
        place = files / "train" / f"class{part.labels[position]}" / f"{position:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(part.read(position))
    row["packed_mean_bytes"] = round(int(part.size.sum()) / len(part))
    return shards, files


def decoders(folder: Path, repeat: int) -> dict[str, Any]:
    """JPEGs a second that each decoder makes uint8 tensors of, on one core."""
    from torchcodec.decoders import decode_jpeg as by_torchcodec
    from torchvision.io import decode_jpeg as by_torchvision

    contents = [p.read_bytes() for p in sorted((folder / "train").rglob("*.jpg"))[:300]]
    ways = {
        "torchcodec": lambda data: by_torchcodec(data, mode="RGB"),
        "torchvision": lambda data: by_torchvision(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB"),
        "Pillow": decode._with_pillow,
    }
    ways = {"chosen": decode.decode} | ways
    decode.select_decoder(much=True)
    epochs = {name: lambda one=one: len([one(data) for data in contents]) for name, one in ways.items()}
    return {"chosen": decode.jpeg_decoder()[0], "images_per_second": measure(epochs, repeat)}


def ours(folder: Path, size: int, crop: str, workers: int, row: dict[str, Any]) -> Epoch:
    """Starfire's epoch; what opening costs goes into `row`."""
    options = DataOptions(
        batch_size=BATCH,
        image_size=size,
        augment={"eval": "none", "packed": "rrc-flip"}.get(crop, crop),
        workers=workers,
    )
    for name in ("open_seconds", "open_again_seconds"):
        started = time.perf_counter()
        data = open_data(str(folder) if crop == "packed" else f"folder:{folder}", options)
        row[name] = round(time.perf_counter() - started, 3)
    row["decoder"], row["resident"] = decode.jpeg_decoder()[0], data.info.stored is not None
    split, epochs = (data.val if crop == "eval" else data.train), iter(range(10**6))
    return lambda: sum(len(labels) for _, labels in split.batches(next(epochs)))


def measure(ways: dict[str, Epoch], repeat: int) -> dict[str, dict[str, Any]]:
    """Medians of images a second, by the clock and by processor time, and their ratio to ours."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(repeat + 1):  # the first turn warms up
        for name, epoch in ways.items():
            clock, spent = time.perf_counter(), processor()
            count = epoch()
            rates = count / (time.perf_counter() - clock), count / max(processor() - spent, 1e-9)
            if turn:
                taken[name].append(rates)
    result = {}
    for name, rates_of in taken.items():
        clock, spent = (statistics.median(rates) for rates in zip(*rates_of, strict=True))
        spread = [round(min(r[0] for r in rates_of)), round(max(r[0] for r in rates_of))]
        result[name] = {"per_second": round(clock), "range": spread, "per_core_second": round(spent)}
    first = next(iter(result.values()))
    for entry in result.values():
        entry["starfire_faster_by"] = round(first["per_second"] / entry["per_second"], 2)
        entry["starfire_cheaper_by"] = round(first["per_core_second"] / entry["per_core_second"], 2)
    return result


def processor() -> float:
    """Processor seconds of this process and of the workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def other(name: str, scratch: Path, folders: dict[str, str], given: argparse.Namespace) -> dict[str, Any]:
    """What is not about batches."""
    if name == "start":
        if name not in folders:
            _input_start.make(scratch / "many" / "train", given.files)
        return _input_start.listing_times(Path(folders.get(name, scratch / "many"), "train"), given.repeat)
    height, width, _, _, count = ROWS["large"]
    folder = Path(folders.get("large", scratch / f"{height}x{width}"))
    if not (folder / "train").is_dir():
        make(folder, height, width, given.images or count)
    return decoders(folder, given.repeat)


def main() -> None:
    """Read the options, run the rows, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join((*ROWS, *OTHERS)))
    parser.add_argument("--files", type=int, default=100_000, help="names to make for `start`")
    parser.add_argument("--images", type=int, help="how many to make for a row")
    parser.add_argument("--data", action="append", default=[], metavar="ROW=FOLDER", help="train/ of class folders")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the main process on one core, beside its workers: else busy cores decide the result
    place = where(torch.device("cpu")) | {"torchvision": str(torchvision.__version__), "workers": given.workers}
    place |= {
        name: version(name)
        for name in ("timm", "torchcodec", "webdataset", "pillow")
        if find_spec(name) or name == "pillow"
    }
    results: dict[str, Any] = {"where": place, "rows": {}}
    folders = dict(pair.split("=", 1) for pair in given.data)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["STARFIRE_CACHE"] = str(Path(scratch) / "cache")
        for name in given.rows.split(","):
            if name in OTHERS:
                results["rows"][name] = other(name, Path(scratch), folders, given)
                print(f"{name}: {json.dumps(results['rows'][name], indent=1)}", flush=True)
                continue
            height, width, size, crop, count = ROWS[name]
            folder = Path(folders.get(name, Path(scratch) / f"{height}x{width}"))
            if not (folder / "train").is_dir():
                make(folder, height, width, given.images or count)
            files = [p for p in (folder / "train").rglob("*") if p.is_file()]
            row: dict[str, Any] = {"images": len(files), "crop": crop, "size": size}
            row["mean_bytes"] = round(sum(p.stat().st_size for p in files) / len(files))
            if name == "packed":
                shards, folder = pack_and_unpack(folder, Path(scratch), row)
                ways = {"starfire, shards": ours(shards, size, "packed", given.workers, row)}
                ways["starfire, files"] = ours(folder, size, crop, given.workers, {})
                ways |= webdataset(shards, size=size, batch=BATCH, workers=given.workers)
            else:
                ways = {"starfire": ours(folder, size, crop, given.workers, row)}
            ways |= peers(folder / "train", crop=crop, size=size, batch=BATCH, workers=given.workers)
            row["images_per_second"] = measure(ways, given.repeat)
            results["rows"][name] = row
            print(f"{name}: {json.dumps(row, indent=1)}", flush=True)
    if given.out:
        given.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
