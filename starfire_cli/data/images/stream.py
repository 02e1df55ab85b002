"""Streams large images from disk to the device while the device computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from starfire_cli.data import digest
from starfire_cli.data.images.resident import count_steps, to_float
from starfire_cli.data.images.workers import DecodedBatch, ImageReader, decode_requests
from starfire_cli.data.options import DataOptions
from starfire_cli.data.shards.readahead import ReadAhead
from starfire_cli.errors import StarfireError


class StreamSplit:
    """Images that worker processes decode anew in every epoch; transferred as uint8, converted to float on the device.

    Args:
        reader: decodes and cuts.
        options: batch sizes, seed, device, workers, rank.
    """

    def __init__(self, reader: ImageReader, options: DataOptions) -> None:
        self._reader, self._options = reader, options
        self._training = reader.augment is not None
        self._batch = options.batch_size if self._training else options.eval_batch_size or options.batch_size
        self._corrupt: set[int] = set()

    def __len__(self) -> int:
        return len(self._reader.files)

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return count_steps(len(self), self._batch, training=self._training)

    @property
    def skipped(self) -> int:
        """Corrupt images met so far, and left out."""
        return len(self._corrupt)

    def digests(self) -> dict[str, str]:
        """Digests that identify this part, for comparison between ranks."""
        return digest.of_files(self._reader.files)

    def batches(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 in [0, 1], (N, 3, H, W), and labels int64, (N,), from batch `start` on; N may be 0.

        Raises:
            StarfireError: a corrupt image (unless they are to be skipped), a dead or silent worker.
        """
        count = len(self)
        order = self._reader.files.order(self._options.seed, epoch) if self._training else np.arange(count)
        rank, ranks = self._options.rank, self._options.ranks
        shares = [slice(s * self._batch + rank, (s + 1) * self._batch, ranks) for s in range(start, self.steps)]
        requests = [(epoch, order[share]) for share in shares]
        reading = ReadAhead(self._reader.files, requests)
        workers = self._options.workers
        with closing(decode_requests(self._reader, requests, self._options, workers, reading.begin)) as answers:
            found = reading.through(answers)
            for images, labels in on_device(map(self._checked, found), self._options.device):
                yield to_float(images, self._options), labels

    def _checked(self, answer: DecodedBatch) -> DecodedBatch:
        for position, reason in answer.failures:
            path = self._reader.files.where(position)
            if not self._options.skip_corrupt:
                raise corrupt_image_error(path, reason)
            self._corrupt.add(position)
            if not len(answer.labels) and self._options.ranks == 1:  # other ranks may have some of the batch
                raise StarfireError(f"corrupt image {path} ({reason}), and all others of its batch are corrupt too")
        return answer


def corrupt_image_error(path: str, reason: str) -> StarfireError:
    """The error for an image that cannot be decoded."""
    return StarfireError(f"corrupt image {path} ({reason}); --skip-corrupt goes on without it")


def on_device(found: Iterator[DecodedBatch], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 images and labels on the device, each batch copied while the one before is in use."""
    if device.type != "cuda":
        for answer in found:
            yield answer.images.to(device), answer.labels.to(device)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[Tensor, Tensor] | None = None
    for answer in found:
        with torch.cuda.stream(copying):
            coming = (answer.images.to(device, non_blocking=True), answer.labels.to(device, non_blocking=True))
        if waiting is not None:
            yield _wait_for_copy(waiting, copying, device)
        waiting = coming
    if waiting is not None:
        yield _wait_for_copy(waiting, copying, device)


def _wait_for_copy(
    batch: tuple[Tensor, Tensor], copying: torch.cuda.Stream, device: torch.device
) -> tuple[Tensor, Tensor]:
    using = torch.cuda.current_stream(device)
    using.wait_stream(copying)
    for tensor in batch:
        tensor.record_stream(using)  # else its memory could be reused while the model still reads it
    return batch
