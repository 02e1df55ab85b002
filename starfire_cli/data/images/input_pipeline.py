"""Chooses a data set's input pipeline: decoded once and resident on the device, or decoded by workers every epoch."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch

from starfire_cli.data.augment import Augment
from starfire_cli.data.augment.rrc_flip import ResizedCropFlip
from starfire_cli.data.images import decode
from starfire_cli.data.options import DataOptions
from starfire_cli.data.shards.layout import Shards
from starfire_cli.data.shards.readahead import read_ahead
from starfire_cli.data.source import Encoded, Part, Pixels, Source
from starfire_cli.errors import StarfireError

SMALL = 96  # pixels; an image with a longer side is decoded anew in every epoch
ROOM = int(2.5e9)  # bytes of decoded images that may stay on the device
SAMPLE = 32  # images whose headers are read to find out
LARGE_OUT = 224
EVAL_RATIO = 256 / 224  # short side over crop, for large images, as everywhere since AlexNet


@dataclass(frozen=True, kw_only=True)
class InputPipeline:
    """The path of images to the network: where they are stored, and their sizes in pixels.

    Args:
        stored: side of the images kept on the device; None where workers decode.
        out: side of the images in a batch.
        resize: side that validation images are scaled to before the centre crop; None for no crop.
    """

    stored: int | None
    out: int
    resize: int | None


def choose_pipeline(train: Part, images: int, options: DataOptions) -> InputPipeline:
    """The pipeline for a set of `images` images in all. Raises StarfireError where no header can be read."""
    if isinstance(train, Pixels):
        stored = int(train.images.shape[-1])
        return InputPipeline(stored=stored, out=options.image_size or stored, resize=None)
    sizes = sample_sizes(train)
    longest = max(max(size) for size in sizes)
    natural = round(statistics.median(min(size) for size in sizes))
    if longest > SMALL:
        out = options.image_size or LARGE_OUT
        return InputPipeline(stored=None, out=out, resize=round(out * EVAL_RATIO))
    out = options.image_size or natural
    stored = natural if len(set(sizes)) == 1 else out
    if 3 * stored**2 * images > memory_limit(options.device):
        return InputPipeline(stored=None, out=out, resize=out)
    return InputPipeline(stored=stored, out=out, resize=None)


def with_validation_resize(pipeline: InputPipeline, augment: Augment) -> InputPipeline:
    """Adds validation's resize and centre crop for resident images that training crops by boxes."""
    if pipeline.stored in (None, pipeline.out) or not isinstance(augment, ResizedCropFlip):
        return pipeline
    return InputPipeline(stored=pipeline.stored, out=pipeline.out, resize=round(pipeline.out * EVAL_RATIO))


def memory_limit(device: torch.device) -> int:
    """Bytes that decoded images may take on the device."""
    if device.type != "cuda":
        return ROOM
    free, _ = torch.cuda.mem_get_info(device)
    return min(ROOM, free // 4)


def sample_sizes(files: Encoded) -> list[tuple[int, int]]:
    """Height and width of images spread over the set. Raises StarfireError where not one header can be read."""
    sizes, problem = [], ""
    positions = sample_positions(files)
    with read_ahead(files, positions):
        for position in positions:
            try:
                sizes.append(decode.size_of(BytesIO(files.read(position))))
            except (decode.Corrupt, OSError) as error:
                problem = f"corrupt image {files.where(position)} ({error})"
    if not sizes:
        raise StarfireError(f"{problem}, and so are all others that were tried")
    return sizes


def auto_augment(source: Source, train: Part, pipeline: InputPipeline) -> str:
    """The augmentation that `auto` stands for: the set's own, or one that suits the images."""
    if source.augment is not None:
        return source.augment
    if not isinstance(train, Pixels) and has_character_classes(source.classes, train):
        return "affine" if pipeline.stored else "rrc-flip:scale=0.5,flip=0"
    return "crop-flip" if pipeline.stored and pipeline.stored <= 48 else "rrc-flip"


def has_character_classes(classes: tuple[str, ...], files: Encoded) -> bool:
    """Whether the set is grey images of single characters, which must not be mirrored."""
    if any(len(name) != 1 for name in classes):
        return False
    positions = sample_positions(files)
    with read_ahead(files, positions):
        return all(_grey(files, position) for position in positions)


def _grey(files: Encoded, position: int) -> bool:
    try:
        with decode.suppress_warnings():
            red, green, blue = decode.decode(files.read(position))
    except (decode.Corrupt, OSError):  # says nothing; opening the set will name it
        return True
    return torch.equal(red, green) and torch.equal(green, blue)


def sample_positions(files: Encoded) -> list[int]:
    """Up to `SAMPLE` positions: of remote shards the first ones, so that not all shards must come."""
    if isinstance(files, Shards) and files.spool is not None:
        return list(range(min(SAMPLE, len(files))))
    return spread_out(len(files))


def spread_out(count: int) -> list[int]:
    """Up to `SAMPLE` positions, evenly over `count`."""
    positions: list[int] = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64)).tolist()
    return positions
