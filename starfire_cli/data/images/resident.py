"""Batches of small images that are resident on the device as one uint8 tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from starfire_cli.data import digest
from starfire_cli.data.augment import Augment
from starfire_cli.data.draws import Draws, shuffled
from starfire_cli.data.images import resample
from starfire_cli.data.options import DataOptions
from starfire_cli.data.source import Pixels

_TOGETHER = 1 << 22  # pixels


class ResidentSplit:
    """Images resident on the device; an epoch needs no decoding, copying or waiting.

    Args:
        pixels: the decoded images.
        options: batch sizes, seed, device, rank.
        out: side of the images in a batch.
        augment: for training; None delivers the images in order, as validation sees them.
        resize: side that validation images are scaled to before the centre crop; None scales to `out`.
        skipped: corrupt images that are not among `pixels`.
    """

    def __init__(
        self,
        pixels: Pixels,
        options: DataOptions,
        *,
        out: int,
        augment: Augment | None,
        resize: int | None = None,
        skipped: int = 0,
    ) -> None:
        self.images = pixels.images.to(options.device)
        self._labels = torch.from_numpy(pixels.labels).to(options.device)
        self._options, self._out, self._augment, self._resize = options, out, augment, resize
        self._batch = options.batch_size if augment else options.eval_batch_size or options.batch_size
        self._skipped = skipped

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return count_steps(len(self), self._batch, training=self._augment is not None)

    @property
    def skipped(self) -> int:
        """Corrupt images that were left out."""
        return self._skipped

    def digests(self) -> dict[str, str]:
        """Digests that identify this part, for comparison between ranks."""
        return digest.of_pixels(self.images, self._labels)

    def batches(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 in [0, 1], (N, 3, H, W), and labels int64, (N,), from batch `start` on; N may be 0."""
        return self._training(self._augment, epoch, start) if self._augment else self._validation(start)

    def _training(self, augment: Augment, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        device, seed = self._options.device, self._options.seed
        order = shuffled(len(self), seed, epoch)
        # Planned for the whole epoch on the CPU: the same numbers on every device, and no step waits for any.
        plan = augment.plan(Draws(seed, epoch, order), self.images.shape[-1], self._out)
        plan = {name: numbers.to(device) for name, numbers in plan.items()}
        index = torch.from_numpy(order).to(device)
        ahead = self._augmented_together()
        for first in range(start, self.steps, ahead):
            shares = [self._share(step) for step in range(first, min(first + ahead, self.steps))]
            some = slice(shares[0].start, shares[-1].stop, shares[0].step)
            which = index[some]
            if not len(which):
                yield self._empty_batch()
                continue
            images = augment.apply(self.images[which], {name: x[some] for name, x in plan.items()}, self._out)
            images = resample.resize(images, self._out)
            sizes = [len(index[share]) for share in shares]
            for part, labels in zip(*(torch.split(x, sizes) for x in (images, self._labels[which])), strict=True):
                yield to_float(part, self._options), labels

    def _augmented_together(self) -> int:
        """Batches that are augmented together: on a GPU small ones take longer to launch than to compute."""
        alone = self._options.device.type == "cpu" or self._options.ranks > 1
        return 1 if alone else max(1, _TOGETHER // (self._batch * self._out**2))

    def _validation(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        side = self._resize or self._out
        for step in range(start, self.steps):
            part = self._share(step)
            if not len(self._labels[part]):
                yield self._empty_batch()
                continue
            images = resample.centre_crop(resample.resize(self.images[part], side), self._out)
            yield to_float(images, self._options), self._labels[part]

    def _share(self, step: int) -> slice:
        return slice(step * self._batch + self._options.rank, (step + 1) * self._batch, self._options.ranks)

    def _empty_batch(self) -> tuple[Tensor, Tensor]:
        return to_float(self.images.new_empty((0, 3, self._out, self._out)), self._options), self._labels[:0]


def count_steps(images: int, batch: int, *, training: bool) -> int:
    """Batches an epoch; a last training batch of one image is left out, since BatchNorm cannot take it."""
    return math.ceil(images / batch) - (training and images % batch == 1 and batch > 1)


def to_float(images: Tensor, options: DataOptions) -> Tensor:
    """uint8 to float32 in [0, 1], in the memory format asked for."""
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    return images.to(dtype=torch.float32, memory_format=layout).div_(255)
