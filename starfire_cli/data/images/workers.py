"""Worker processes that decode, crop and resize images into uint8 batches.

A request is (epoch, positions). Everything random follows from those and the seed, so that it does not matter which
worker answers.
"""

from __future__ import annotations

import errno
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from starfire_cli.data.augment import Augment
from starfire_cli.data.draws import Draws, Ints
from starfire_cli.data.images import decode, resample, sharing
from starfire_cli.data.images.sharing import empty_batch
from starfire_cli.data.options import DataOptions
from starfire_cli.data.source import Encoded
from starfire_cli.errors import StarfireError

AT_ONCE = 16  # images decoded before the first is scaled: bounds memory, and shares the cost of drawing boxes
Request = tuple[int, Ints]


class DecodedBatch(NamedTuple):
    """The decoded images of a request, and the failures."""

    images: Tensor  # uint8 (B, 3, out, out), channels innermost in memory
    labels: Tensor  # int64 (B,)
    failures: list[tuple[int, str]]  # position and reason
    problem: str | None = None  # why no image could be had at all, skipped or not


@dataclass(frozen=True, kw_only=True)
class ImageReader(Dataset[DecodedBatch]):
    """Decodes images of `files` to squares of side `out`.

    Args:
        files: where they lie.
        out: side in pixels.
        resize: short side before the centre crop; used where `augment` is None.
        augment: which boxes are cut in training.
        seed: of the boxes.
    """

    files: Encoded
    out: int
    resize: int
    augment: Augment | None = None
    seed: int = 0

    def __getitem__(self, request: Request) -> DecodedBatch:
        epoch, positions = request
        good: list[int] = []
        failures: list[tuple[int, str]] = []
        with decode.suppress_warnings():
            try:
                images, labels = empty_batch(len(positions), self.out, shared=get_worker_info() is not None)
                self._fill(images, epoch, positions, good, failures)
            except StarfireError as error:  # as a value: torch would wrap an exception's text in a traceback
                return DecodedBatch(*empty_batch(0, self.out, shared=False), [], str(error))
        labels[: len(good)] = torch.from_numpy(self.files.labels[good])
        return DecodedBatch(images[: len(good)], labels[: len(good)], failures)

    def _fill(
        self, images: Tensor, epoch: int, positions: Ints, good: list[int], failures: list[tuple[int, str]]
    ) -> None:
        for start in range(0, len(positions), AT_ONCE):
            decoded = []
            for position in positions[start : start + AT_ONCE].tolist():
                try:
                    decoded.append((position, self._decoded(position)))
                except decode.Corrupt as error:
                    failures.append((position, str(error)))
            for place, image in enumerate(self._scaled(epoch, decoded), start=len(good)):
                images[place] = image
            good += [position for position, _ in decoded]

    def _decoded(self, position: int) -> Tensor:
        try:
            data = self.files.read(position)
        except OSError as error:
            raise decode.Corrupt(error.strerror or str(error)) from None
        return decode.decode(data)

    def _scaled(self, epoch: int, decoded: list[tuple[int, Tensor]]) -> Iterator[Tensor]:
        if self.augment is None:
            for _, image in decoded:
                yield resample.centre_crop(resample.scale_short(image, self.resize), self.out)
            return
        heights, widths = (np.array([image.shape[axis] for _, image in decoded], dtype=np.int64) for axis in (1, 2))
        draws = Draws(self.seed, epoch, np.array([position for position, _ in decoded], dtype=np.int64))
        boxes = self.augment.boxes(draws, heights, widths).tolist() if decoded else []
        for (_, image), (top, left, tall, wide, flip) in zip(decoded, boxes, strict=True):
            box = resample.scale(image[:, top : top + tall, left : left + wide], self.out, self.out)
            yield box.flip(2) if flip else box


def decode_requests(
    reader: ImageReader,
    requests: Sequence[Request],
    options: DataOptions,
    workers: int,
    begun: Callable[[], object] | None = None,
) -> Generator[DecodedBatch, None, None]:
    """Decodes all requests in order; `begun` is called when the workers have started.

    Whoever leaves before the end closes it, which stops the workers; at the interpreter's end they take seconds.

    Raises:
        StarfireError: a worker that died or fell silent, full shared memory, images that cannot be had at all.
    """
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=options.device.type == "cuda",
        timeout=options.timeout if workers else 0,
        worker_init_fn=_init_worker,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),  # without one, torch's global generator would move on
    )
    sharing.check_locks(3 * workers + 9 if workers else 0)
    try:
        batches = iter(loader)
    except OSError as error:
        raise _start_error(error, workers) from None
    try:
        if begun:
            begun()
        for answer in batches:
            if answer.problem is not None:
                raise StarfireError(answer.problem)
            yield answer
    except RuntimeError as error:
        raise worker_failure(error, workers, options.timeout) or error from None
    finally:
        if workers:
            _stop_workers(batches)


def _stop_workers(batches: Any) -> None:
    """Stops the workers of a DataLoader's iterator; one that hangs is killed, since it ignores SIGTERM."""
    processes = list(batches._workers)
    batches._shutdown_workers()
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _start_error(error: OSError, workers: int) -> Exception:
    """The error for workers that cannot be started: processes, pipes and open files are limited."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
        return StarfireError(
            f"--workers {workers} cannot be started ({error.strerror}); fewer --workers need less, --workers 0 none"
        )
    return error


def worker_failure(error: RuntimeError, workers: int, timeout: float) -> StarfireError | None:
    """The error for the user where torch reports a lost worker; None for any other error."""
    text = str(error)
    if sharing.is_shared_memory_error(error):
        return sharing.shared_memory_error(error)
    if "DataLoader timed out" in text:
        return StarfireError(
            f"no batch from the {workers} workers for {timeout:g} s: the disk or a worker hangs; "
            "--workers 0 decodes in the main process and shows where"
        )
    if "DataLoader worker" not in text:
        return None
    first_line = text.partition("\n")[0].rstrip(". ")
    return StarfireError(
        f"a worker that decodes images has died ({first_line}): killed, or out of memory; try fewer --workers"
    )


def _unchanged(answer: Any) -> Any:
    return answer


def _init_worker(number: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole group. The main process decides what happens then; a worker
    # that died by a signal would raise an error there, perhaps while a checkpoint is being written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if multiprocessing.get_start_method() != "fork":  # a forked worker inherits the choice of its parent
        decode.select_decoder(much=True)
