"""Small images: how do they become batches when all of them live on the device as one uint8 tensor?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from starfire_cli.data import resample
from starfire_cli.data.augment import Augment
from starfire_cli.data.draws import Draws, shuffled
from starfire_cli.data.options import DataOptions
from starfire_cli.data.source import Pixels


class ResidentSplit:
    """Images that stay on the device; nothing is decoded, copied or waited for in an epoch.

    Args:
        pixels: the decoded images.
        options: batch sizes, seed, device.
        out: side of the images in a batch.
        augment: for training; None delivers the images in order, as they are.
        resize: short side that validation images are scaled to before the centre crop; None to scale to `out`.
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
        self._images = pixels.images.to(options.device)
        self._labels = torch.from_numpy(pixels.labels).to(options.device)
        self._options, self._out, self._augment, self._resize = options, out, augment, resize
        self._batch = options.batch_size if augment else options.eval_batch_size or options.batch_size
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def steps(self) -> int:
        """Batches an epoch; a last training batch of one image is left out, since BatchNorm cannot take it."""
        alone = self._augment is not None and len(self) % self._batch == 1
        return math.ceil(len(self) / self._batch) - alone

    def batches(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 in [0, 1], (N, 3, H, W), and labels int64, (N,), from batch `start` on."""
        return self._training(self._augment, epoch, start) if self._augment else self._validation(start)

    def _training(self, augment: Augment, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        device, seed = self._options.device, self._options.seed
        order = shuffled(len(self), seed, epoch)
        # Planned for the whole epoch on the CPU: the numbers are the same for every device, and the step waits for none.
        plan = augment.plan(Draws(seed, epoch, order), self._images.shape[-1], self._out)
        plan = {name: numbers.to(device) for name, numbers in plan.items()}
        index = torch.from_numpy(order).to(device)
        for step in range(start, self.steps):
            part = slice(step * self._batch, (step + 1) * self._batch)
            images = self._images[index[part]]
            images = augment.apply(images, {name: numbers[part] for name, numbers in plan.items()}, self._out)
            yield self._finished(resample.resize(images, self._out, self._out)), self._labels[index[part]]

    def _validation(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start, self.steps):
            part = slice(step * self._batch, (step + 1) * self._batch)
            images = self._images[part]
            if self._resize:
                images = resample.resize(images, self._resize, self._resize)
                top, left = resample.centre(self._resize, self._resize, self._out, self._out)
                images = images[:, :, top : top + self._out, left : left + self._out]
            yield self._finished(resample.resize(images, self._out, self._out)), self._labels[part]

    def _finished(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self._options.channels_last else torch.contiguous_format
        return images.to(dtype=torch.float32, memory_format=layout).div_(255)
